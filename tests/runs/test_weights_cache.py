"""Integer weights on disk: the same as those that were solved, solved once."""

import pytest
import torch

from bitsplit.methods import Codes
from bitsplit.ptq import Weights
from bitsplit.runs.weights_cache import cached_weights


def solved(with_offset: bool) -> Weights:
    codes = torch.randint(-127, 128, (2, 3, 4), dtype=torch.int8)
    offset = torch.randn(2, 3) if with_offset else None
    return Weights(
        {"a.conv": Codes(codes, torch.rand(2, 3), offset), "fc": Codes(codes[:1], torch.rand(1, 3))},
        {"weights": 0.5},
    )


@pytest.mark.parametrize("with_offset", [False, True])
def test_what_is_read_is_what_was_solved(tmp_path, with_offset):
    first = cached_weights(tmp_path / "key", "cpu", lambda: solved(with_offset))
    read = cached_weights(tmp_path / "key", "cpu", lambda: solved(with_offset))
    assert read.seconds == first.seconds and list(read.codes) == list(first.codes)
    for name, codes in first.codes.items():
        assert torch.equal(read.codes[name].codes, codes.codes)
        assert torch.equal(read.codes[name].scale, codes.scale)
        assert (read.codes[name].offset is None) == (codes.offset is None)
        assert codes.offset is None or torch.equal(read.codes[name].offset, codes.offset)


def test_a_network_without_integer_weights_has_a_file_too(tmp_path):
    nothing = Weights({}, {"weights": 0.0})
    assert cached_weights(tmp_path / "key", "cpu", lambda: nothing) is nothing
    assert cached_weights(tmp_path / "key", "cpu", lambda: solved(False)) == nothing
