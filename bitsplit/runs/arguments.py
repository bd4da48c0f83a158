"""Command-line arguments in a form that Hydra's grammar can read: paths as users write them, without further quotes."""

import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from bitsplit.files import user_path


def readable_arguments(arguments: list[str]) -> list[str]:
    """`arguments` with `~` at the start of a value expanded, and values that the grammar cannot read as quoted text.

    >>> readable_arguments(["wbits=3,4", "data.root=/my images (ü)", "-m"])
    ['wbits=3,4', "data.root='/my images (ü)'", '-m']
    """
    return [_readable(argument) if "=" in argument.lstrip("-~") else argument for argument in arguments]


def _readable(argument: str) -> str:
    key, _, value = argument.partition("=")
    if key.startswith("-"):
        return argument
    value = str(user_path(value)) if value.startswith("~") else value
    # In quotes, a backslash counts as itself but before a quote.
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + (found[2] and "\\'"), value)
    forms = [f"{key}={value}", f"{key}='{escaped}'"]
    return next(filter(_is_grammatical, forms), argument)


def _is_grammatical(argument: str) -> bool:
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True
