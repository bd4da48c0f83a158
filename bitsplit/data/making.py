"""What images are made by: the code that draws or decodes them, and its libraries."""

from importlib.metadata import version
from pathlib import Path

from bitsplit.files import sources_digest

_CODE = sources_digest(Path(__file__).parent.glob("*.py"))


def images_made_by() -> list[str]:
    """What tells kept values of images apart that another version of anything would have made otherwise."""
    return [_CODE, *(f"{name} {version(name)}" for name in ("matplotlib", "numpy", "pillow", "torchvision"))]
