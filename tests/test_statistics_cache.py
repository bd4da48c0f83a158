"""Statistics on disk: the same as those of a pass, collected once, and harmless when the file is not whole."""

import pytest
import torch
from networks import BATCHES, SMALL

from bitsplit import ptq
from bitsplit.statistics_cache import cached


@pytest.fixture
def collect(network):
    def count() -> ptq.Statistics:
        count.calls += 1
        return ptq.statistics_of(network, BATCHES, SMALL)

    count.calls = 0
    return count


def assert_same(one, other):
    assert list(one.layers) == list(other.layers) and one.skipped == other.skipped
    for first, second in zip(one.layers.values(), other.layers.values(), strict=True):
        assert (first.signed, first.source, first.stats.n) == (second.signed, second.source, second.stats.n)
        for name in ("gram", "cross", "energy"):
            assert torch.equal(getattr(first.stats, name), getattr(second.stats, name))


def test_what_is_read_is_what_was_written(network, collect, tmp_path):
    first = cached(tmp_path / "folder" / "key", network, collect)
    second = cached(tmp_path / "folder" / "key", network, collect)
    assert collect.calls == 1
    assert_same(first, second)
    cached(tmp_path / "folder" / "other", network, collect)
    assert collect.calls == 2


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"no archive"])
def test_a_damaged_file_is_collected_anew(network, collect, tmp_path, damage):
    expected = cached(tmp_path / "key", network, collect)
    (path,) = tmp_path.glob("*.pt")
    path.write_bytes(damage(path.read_bytes()))
    assert_same(cached(tmp_path / "key", network, collect), expected)
    assert collect.calls == 2
    cached(tmp_path / "key", network, collect)
    assert collect.calls == 2


def test_a_folder_that_cannot_be_written_is_done_without(network, collect, tmp_path):
    (tmp_path / "file").write_text("")
    assert cached(tmp_path / "file" / "key", network, collect).layers
    assert collect.calls == 1


def test_an_interrupt_leaves_nothing_half_written(network, tmp_path, monkeypatch):
    def interrupted(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / "key", network, lambda: ptq.statistics_of(network, BATCHES, SMALL))
    assert not list(tmp_path.iterdir())
