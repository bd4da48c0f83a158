"""The data set of a run that names none."""

from bitsplit.data.glyphs import Glyphs
from bitsplit.data.imagenet import ImageNet


def automatic(root: str | None = None, resize: int | None = 256) -> ImageNet | Glyphs:
    """ImageNet where a root is given, else the embedded glyphs."""
    return ImageNet(root, resize) if root else Glyphs()
