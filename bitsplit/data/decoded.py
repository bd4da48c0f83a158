"""Decoded images on disk: one whole pass over a set decodes it for later passes, those of other processes too."""

from collections.abc import Iterator
from functools import cached_property
from os.path import commonpath
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bitsplit.data.making import images_made_by
from bitsplit.files import cache_root, facts_digest, files_digest, scratch_folder
from bitsplit.kept import appending, is_computing_anew, mark_used, stored_file

_SUFFIX = ".images"


class DecodedImages:
    """Batches (images (N', 3, crop, crop) uint8, readable (N,) bool) of a loader over `ImageFiles`, N' of N readable.

    Files are decoded anew where they, their transform, or what decodes them have changed, and where one of them cannot
    be read: it may be readable next time.
    """

    def __init__(self, loader: DataLoader, crop: int):
        self._loader, self._shape = loader, (3, crop, crop)
        self._path: Path | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        folder = (scratch_folder() if is_computing_anew() else cache_root()) / "images"
        if self._path is None:
            self._path = stored_file(folder, self._stem, _SUFFIX)
        if self._path and self._path.exists():
            yield from self._read(self._path)
        else:
            yield from self._decode(folder)

    def _read(self, path: Path) -> Iterator[tuple[Tensor, Tensor]]:
        mark_used(path)
        # Not mapped into memory: what is read of a mapped file counts as memory that this process holds.
        with path.open("rb") as file:
            while len(images := np.fromfile(file, (np.uint8, self._shape), self._loader.batch_size)):
                yield torch.from_numpy(images), torch.ones(len(images), dtype=torch.bool)

    def _decode(self, folder: Path) -> Iterator[tuple[Tensor, Tensor]]:
        with appending(folder, self._stem, _SUFFIX) as store:
            for number, (images, readable) in enumerate(self._loader, 1):
                if readable.all():
                    store.append(images.data)
                else:
                    store.give_up()
                if number == len(self._loader):  # and not after it: nobody asks for one more than there are
                    store.finish()
                    self._path = store.path
                yield torch.from_numpy(images), torch.from_numpy(readable)

    @cached_property
    def _stem(self) -> str:
        files, loader = self._loader.dataset, self._loader
        folder = Path(commonpath(files.paths)).parent
        facts = {
            "files": [str(folder.resolve()), files_digest(files.paths, folder, times=True)],
            "images": len(loader) * loader.batch_size if loader.drop_last else len(files),
            "transform": [repr(files.transform), files.seed],
            "made by": [torch.__version__, *images_made_by()],
        }
        return facts_digest(facts)[:16]
