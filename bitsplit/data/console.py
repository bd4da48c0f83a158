"""What a command prints, wherever that goes: to a closed or full place, or in an encoding that lacks its characters."""

import io
import os
import sys

_STANDARD = {"stdout": (1, "replace"), "stderr": (2, "backslashreplace")}


class _Outlet(io.FileIO):
    """A descriptor; what cannot be written to it is lost in silence, for results never depend on what is printed."""

    def write(self, data) -> int | None:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def prepare_console() -> None:
    """Lets this process print without an error, whatever its standard output and error are.

    What is closed leads nowhere, so that no file opened later takes its number and receives what libraries print.
    Streams that somebody has replaced, a notebook or a test, stay as they are.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed, and the lowest free number, which the next to be opened gets
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name, (descriptor, errors) in _STANDARD.items():
        if getattr(sys, name) is getattr(sys, f"__{name}__"):
            setattr(sys, name, _stream(getattr(sys, name), descriptor, errors))


def _stream(old: io.TextIOWrapper | None, descriptor: int, errors: str) -> io.TextIOWrapper:
    outlet = _Outlet(descriptor, "w", closefd=False)
    if old is None:
        return io.TextIOWrapper(io.BufferedWriter(outlet), "utf-8", errors)
    old.flush()
    unbuffered = old.write_through  # as with PYTHONUNBUFFERED
    buffer = outlet if unbuffered else io.BufferedWriter(outlet)
    return io.TextIOWrapper(buffer, old.encoding, errors, line_buffering=old.line_buffering, write_through=unbuffered)
