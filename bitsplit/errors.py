"""The one exception for input that the user can put right, and how errors are printed."""


class InputError(ValueError):
    """Wrong bit-width, path, name, file or network: its message is one line that says what to do.

    The command line prints it and exits with code 2; from Python it is an ordinary `ValueError`.
    """


def one_line(text: object) -> str:
    """`text`, an error or a message, without its line breaks and indentation."""
    return " ".join(str(text).split())
