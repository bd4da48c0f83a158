"""Quantization methods, one a file; the file's name is the method's name."""

import importlib
import pkgutil

from bitsplit.errors import InputError
from bitsplit.methods.base import Codes, Method

__all__ = ["Codes", "Method", "names", "named"]


def names() -> list[str]:
    """The methods there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def named(name: str) -> Method:
    """The method of that name with its default settings.

    Raises InputError for a name there is no file for.

    >>> named("tflite")
    TFLite()
    """
    if name not in names():
        raise InputError(f"unknown method {name!r}; there are {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    return next(
        entry()
        for entry in vars(module).values()
        if isinstance(entry, type) and issubclass(entry, Method) and entry.__module__ == module.__name__
    )
