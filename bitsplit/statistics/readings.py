"""Readings of what calibration images come from: as often as they are needed, and each time the same ones."""

import contextlib
import random
from collections.abc import Iterable, Iterator, Sized

import numpy as np
import torch


def repeatable(source: Iterable) -> bool:
    """Whether it can be read again, and knows its length: a DataLoader of a stream has none, but raises TypeError."""
    try:
        len(source)
    except TypeError:
        return False
    return not isinstance(source, Iterator)


def first_images(source: Iterable, most: int) -> Iterator:
    """Batches of `source` until they have `most` images: a stream may have millions more, or no end."""
    images = 0
    for batch in source:
        yield batch
        images += len(images_of(batch)) if isinstance(images_of(batch), Sized) else 0
        if images >= most:
            return


def images_of(batch: object) -> object:
    """What a batch has beside labels and the like."""
    return batch[0] if isinstance(batch, (tuple, list)) else batch


class Readings:
    """Iterates over a source as often as is asked for. What it draws, an order or augmentations, is drawn from `seed`
    in each reading, or from the generator that a DataLoader was given, so that all of them give the same images, and no
    draw of the caller's is used up."""

    def __init__(self, source: Iterable, seed: int):
        self._source, self._seed = source, seed
        generator = getattr(source, "generator", None)
        self._generator = generator if isinstance(generator, torch.Generator) else None
        self._start = self._generator.get_state() if self._generator else None

    def __iter__(self) -> Iterator:
        states, batches = _seeded(self._seed), None
        try:
            while True:
                with _drawing_from(states):
                    batches = iter(self._source) if batches is None else batches
                    try:
                        batch = next(batches)
                    except StopIteration:
                        return
                yield batch
        finally:
            if self._generator:
                self._generator.set_state(self._start)


def _seeded(seed: int) -> list:
    """States of the generators that readers of images draw from."""
    torchs = torch.Generator().manual_seed(seed).get_state()
    return [torchs, random.Random(seed).getstate(), np.random.RandomState(seed % 2**32).get_state()]


@contextlib.contextmanager
def _drawing_from(states: list) -> Iterator[None]:
    """Inside it the generators are in `states`, which hold afterwards where they have come to."""
    before = _states()
    _set_states(states)
    try:
        yield
    finally:
        states[:] = _states()
        _set_states(before)


def _states() -> list:
    return [torch.get_rng_state(), random.getstate(), np.random.get_state()]


def _set_states(states: list) -> None:
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])
