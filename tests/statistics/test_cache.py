"""Statistics on disk: the same as those of a pass, collected once, and harmless when the file is not whole."""

import pytest
import torch
from small_networks import known_of

from bitsplit import methods
from bitsplit.statistics.cache import cached_statistics
from bitsplit.statistics.moments import Statistics


@pytest.fixture
def collect(network):
    def count() -> Statistics:
        count.calls += 1
        return known_of(network, methods.named("tflite")).statistics

    count.calls = 0
    return count


def assert_same(one, other):
    assert list(one.layers) == list(other.layers) and one.skipped == other.skipped
    for first, second in zip(one.layers.values(), other.layers.values(), strict=True):
        assert (first.signed, first.calls, first.stats.n) == (second.signed, second.calls, second.stats.n)
        for name in ("gram", "cross", "energy"):
            assert torch.equal(getattr(first.stats, name), getattr(second.stats, name))


def test_what_is_read_is_what_was_written(network, collect, tmp_path):
    first = cached_statistics(tmp_path / "folder" / "key", network, collect)
    second = cached_statistics(tmp_path / "folder" / "key", network, collect)
    assert collect.calls == 1
    assert_same(first, second)
    cached_statistics(tmp_path / "folder" / "other", network, collect)
    assert collect.calls == 2


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"no archive"])
def test_a_damaged_file_is_collected_anew(network, collect, tmp_path, damage):
    expected = cached_statistics(tmp_path / "key", network, collect)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    assert_same(cached_statistics(tmp_path / "key", network, collect), expected)
    assert collect.calls == 2
    cached_statistics(tmp_path / "key", network, collect)
    assert collect.calls == 2


def test_a_folder_that_cannot_be_written_is_done_without(network, collect, tmp_path):
    (tmp_path / "file").write_text("")
    assert cached_statistics(tmp_path / "file" / "key", network, collect).layers
    assert collect.calls == 1


def test_an_interrupt_leaves_nothing_half_written(network, collect, tmp_path, monkeypatch):
    def interrupted(*_, **__) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached_statistics(tmp_path / "key", network, collect)
    assert not list(tmp_path.iterdir())
