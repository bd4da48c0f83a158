"""Calibration images: kinds of sources, how often they are read, and their pieces."""

import random

import numpy as np
import pytest
import torch
from small_networks import BATCHES, images
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from bitsplit.errors import InputError
from bitsplit.statistics.batches import CalibrationBatches, pieces

NETWORK = nn.Conv2d(3, 4, 3)
SOURCES = {
    "list": lambda: BATCHES,
    "generator": lambda: (x for x in BATCHES),
    "iterator": lambda: iter(BATCHES),
    "tuple": lambda: tuple(BATCHES),
    "labelled": lambda: [(x, torch.zeros(len(x))) for x in BATCHES],
    "labelled generator": lambda: ([x, "label"] for x in BATCHES),
    "loader": lambda: DataLoader(torch.utils.data.TensorDataset(torch.cat(BATCHES)), batch_size=len(BATCHES[0])),
}


@pytest.mark.parametrize("source", SOURCES)
def test_images_can_be_read_again_and_labels_are_dropped(source):
    batches = CalibrationBatches(SOURCES[source](), NETWORK, batch_size=8)
    assert len(batches) == len(BATCHES) and batches.count(2) == 2 and batches.count(99) == len(BATCHES)
    for _ in range(2):
        assert all(torch.equal(*pair) for pair in zip(batches.first(99), BATCHES, strict=True))
        assert [len(batch) for batch in batches.first(2)] == [len(batch) for batch in BATCHES[:2]]


def test_settings_count_in_batches_of_their_size():
    batches = CalibrationBatches([torch.zeros(16, 3, 4, 4)] * 10, NETWORK, batch_size=64)
    assert (batches.count(1), batches.count(2), batches.count(3), batches.whole, batches.small) == (4, 8, 10, 2, False)
    larger = CalibrationBatches([torch.zeros(128, 3, 4, 4)] * 3, NETWORK, batch_size=64)
    assert (larger.count(1), larger.count(9), larger.whole) == (1, 3, 3)
    single = CalibrationBatches([torch.zeros(1, 3, 4, 4)] * 100, NETWORK, batch_size=64)
    assert (single.count(1), single.whole, single.small) == (64, 0, True)


def test_images_take_the_networks_layout():
    network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    (batch,) = CalibrationBatches(BATCHES, network).first(1)
    assert batch.is_contiguous(memory_format=torch.channels_last) and torch.equal(batch, BATCHES[0])


class Augmented(Dataset):
    """Images that draw from every generator there is."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.full((3, 4, 4), index + torch.rand(()).item()) * random.random() + float(np.random.rand())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("own", [False, True])
def test_every_reading_of_a_loader_that_shuffles_gives_the_same_images(workers, own):
    def batches(seed):
        generator = torch.Generator().manual_seed(3) if own else None
        loader = DataLoader(Augmented(), 16, shuffle=True, num_workers=workers, generator=generator)
        return CalibrationBatches(loader, NETWORK, seed=seed)

    calibration, drawn = batches(1), (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    first = list(calibration.first(9))
    assert torch.equal(torch.get_rng_state(), drawn[0]) and random.getstate() == drawn[1]
    assert np.random.get_state()[1].tolist() == drawn[2]
    torch.rand(5)  # between two readings
    assert all(torch.equal(*pair) for pair in zip(first, calibration.first(9), strict=True))
    assert all(torch.equal(*pair) for pair in zip(first, batches(1).first(9), strict=True))
    if not own:
        assert not any(torch.equal(*pair) for pair in zip(first, batches(2).first(9), strict=True))


def test_no_more_of_a_stream_is_kept_than_is_read():
    class Endless(IterableDataset):
        def __iter__(self):
            return iter(lambda: torch.zeros(3, 4, 4), None)

    for size, count in ((16, 12), (64, 3), (100, 2)):
        assert len(CalibrationBatches(DataLoader(Endless(), size), NETWORK, 64, most_batches=3)) == count


@pytest.mark.parametrize("source", [[], iter([]), ()])
def test_no_images(source):
    with pytest.raises(InputError, match="empty"):
        CalibrationBatches(source, NETWORK)


def test_pieces_are_the_batches_with_their_shares(monkeypatch):
    monkeypatch.setattr("bitsplit.statistics.batches._PIECE_PIXELS", 3 * 12 * 12 + 1)
    batches = images(8, 2)
    parts = list(pieces(batches))
    assert [len(piece) for piece, _ in parts] == [3, 3, 2, 2]
    assert [share for _, share in parts] == [3 / 8, 3 / 8, 2 / 8, 1]
    assert torch.equal(torch.cat([piece for piece, _ in parts]), torch.cat(batches))
    assert torch.equal(CalibrationBatches(batches, NETWORK).first_piece(), batches[0][:3])
    monkeypatch.setattr("bitsplit.statistics.batches._PIECE_PIXELS", 1)
    assert [len(piece) for piece, _ in pieces(batches)] == [1] * 10
