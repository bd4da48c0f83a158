"""Import torchvision, also beside a torch build that its compiled operators were not made for, and in half the time.

torchvision's wheel is linked against CUDA. With a CPU-only torch its operator library does not load, and the
import then stops at the fake kernels it registers for `nms`. Declaring the two schemas is enough for its models,
transforms and data sets, which is all this project uses of it.

For one question of its RoI alignment, which nobody asks here, torchvision loads torch's whole compiler: a second of
every command. While it is imported, another answer stands in that place; the compiler itself can be loaded afterwards.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch


def _operators_load() -> bool:
    package = Path(importlib.util.find_spec("torchvision").origin).parent
    library = next(package.glob("_C*.so"), None) or next(package.glob("_C*.pyd"), None)
    if library is None:
        return False
    try:
        torch.ops.load_library(library)
    except OSError:
        return False
    return True


if not _operators_load():
    # Module level on purpose: the declarations live as long as this object does.
    _schemas = torch.library.Library("torchvision", "DEF")
    _schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@contextmanager
def _without_compiler() -> Iterator[None]:
    if "torch._dynamo" in sys.modules:
        yield
        return
    package, utilities = ModuleType("torch._dynamo"), ModuleType("torch._dynamo.utils")
    utilities.is_compile_supported = lambda device_type: False
    sys.modules |= {"torch._dynamo": package, "torch._dynamo.utils": utilities}
    try:
        yield
    finally:
        del sys.modules["torch._dynamo"], sys.modules["torch._dynamo.utils"]


with _without_compiler():
    import torchvision

__all__ = ["torchvision", "transforms"]  # noqa: F822  the second is loaded where it is asked for


def __getattr__(name: str) -> ModuleType:
    """`transforms`, which do load the compiler."""
    if name != "transforms":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from torchvision.transforms import v2

    return v2
