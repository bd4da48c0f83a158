"""bitsplit: 3- to 8-bit convolutional networks without labels and without back-propagation.

qmodel = bitsplit.quantize(model, loader, wbits=4, abits=4)
solution = bitsplit.solve(gram, cross, bits=4)
"""

from importlib import import_module as _import_module

__version__ = "0.1.0"
__all__ = ["InputError", "quantize", "solve"]

_HOMES = {"quantize": "bitsplit.api", "solve": "bitsplit.solver", "InputError": "bitsplit.errors"}


def __getattr__(name: str):
    # Public names are loaded on first use: `import bitsplit` alone stays instant.
    if name not in _HOMES:
        raise AttributeError(f"module 'bitsplit' has no attribute {name!r}")
    return getattr(_import_module(_HOMES[name]), name)
