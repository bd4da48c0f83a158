"""bitsplit: 2- to 8-bit convolutional networks without labels and without back-propagation.

qmodel = bitsplit.quantize(model, loader, wbits=4, abits=4)
bitsplit.save(qmodel, "resnet18-w4a4.safetensors")
qmodel = bitsplit.load("resnet18-w4a4.safetensors", model)
bitsplit.verify(qmodel, images)
solution = bitsplit.solve(gram, cross, bits=4)
"""

from importlib import import_module as _import_module

__version__ = "0.1.0"

_HOMES = {
    "InputError": "bitsplit.errors",
    "export_onnx": "bitsplit.export.onnx.file",
    "export_tflite": "bitsplit.export.tflite_file",
    "load": "bitsplit.export.packed.save_load",
    "quantize": "bitsplit.ptq",
    "save": "bitsplit.export.packed.save_load",
    "solve": "bitsplit.solver.bitsplit",
    "verify": "bitsplit.export.integers",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    # Public names are loaded on first use: `import bitsplit` alone stays instant.
    if name not in _HOMES:
        raise AttributeError(f"module 'bitsplit' has no attribute {name!r}")
    return getattr(_import_module(_HOMES[name]), name)
