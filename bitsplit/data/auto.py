"""The data set of a run that names none."""

import dataclasses
import os

from hydra.utils import get_class

from bitsplit.data.coco import Coco, GlyphsCoco
from bitsplit.data.glyphs import Glyphs
from bitsplit.data.imagenet import ImageNet
from bitsplit.errors import InputError
from bitsplit.files import user_path

# By task: the data set of a root, the variable that may name it, and the embedded data set where there is none.
_SETS = {
    "classification": (ImageNet, "IMAGENET_ROOT", Glyphs),
    "detection": (Coco, "COCO_ROOT", GlyphsCoco),
}


def automatic(model: str, root: str | None = None, resize: int | None = 256):
    """For `model`, a class of models or detectors: ImageNet or COCO where a root is given, else the embedded data."""
    if not model.startswith("bitsplit.networks."):
        raise InputError(f"data.model must name something in bitsplit.networks; got {model}")
    full, variable, embedded = _SETS[get_class(model).task]
    if not (root := root or os.environ.get(variable)):
        return embedded()
    options = {"resize": resize} if "resize" in {entry.name for entry in dataclasses.fields(full)} else {}
    return full(str(user_path(root)), **options)
