"""Import torchvision, also beside a torch build that its compiled operators were not made for.

torchvision's wheel is linked against CUDA. With a CPU-only torch its operator library does not load, and the
import then stops at the fake kernels it registers for `nms`. Declaring the two schemas is enough for its models,
transforms and data sets, which is all this project uses of it.
"""

import importlib.util
from pathlib import Path

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

import torchvision  # noqa: E402
from torchvision.transforms import v2 as transforms  # noqa: E402

__all__ = ["torchvision", "transforms"]
