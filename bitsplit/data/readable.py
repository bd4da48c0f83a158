"""A folder none of whose images can be read is named before anything is computed."""

from pathlib import Path

from bitsplit.data.images import ImageBatches, ImageFiles
from bitsplit.errors import InputError


def with_readable_images(batches: ImageBatches, folder: Path) -> ImageBatches:
    """`batches`, if one of their images can be read; InputError, instead of a warning for each, if none can."""
    paths = batches.paths[: len(batches) * batches.batch_size]
    files = ImageFiles(paths, range(len(paths)), lambda image: image)
    if any(files[index] is not None for index in range(len(files))):
        return batches
    raise InputError(
        f"none of the {len(paths)} images taken from {folder} can be read, {paths[0]} among them; "
        "permit reading them, or replace the damaged ones"
    )
