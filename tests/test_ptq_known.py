"""What earlier calls have computed: used again, the result is the same, and nothing of it changes."""

import copy
import dataclasses

import pytest
import torch
from small_networks import BATCHES, QUICK, SMALL, assert_same, every_method, known_of

import bitsplit
from bitsplit import methods, ptq
from bitsplit.settings import BatchNorm, Bits

PARTS = [field.name for field in dataclasses.fields(ptq.Known)]


def assert_equal(value, expected):
    """Equal to the last bit, whatever it is made of."""
    assert type(value) is type(expected)
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            assert_equal(getattr(value, field.name), getattr(expected, field.name))
    elif isinstance(value, dict):
        assert list(value) == list(expected)
        for key in value:
            assert_equal(value[key], expected[key])
    elif isinstance(value, (tuple, list)):
        for pair in zip(value, expected, strict=True):
            assert_equal(*pair)
    elif isinstance(value, torch.Tensor):
        assert value.dtype == expected.dtype and torch.equal(value, expected)
    else:
        assert value == expected


def settings_of(mode):
    return dataclasses.replace(SMALL, batch_norm=BatchNorm(mode=mode))


@pytest.mark.parametrize("mode", ["shift", "reestimate", "none"])
@pytest.mark.parametrize("method", ["bitsplit", "lapq", "aciq_mix"])
def test_what_is_known_is_used_and_left_as_it_is(network, method, mode):
    method, settings = QUICK.get(method) or methods.named(method), settings_of(mode)
    known = known_of(network, method, settings)
    assert (known.float_norms is not None) == (mode == "shift")
    before, state = copy.deepcopy(known), copy.deepcopy(network.state_dict())
    expected = bitsplit.quantize(network, BATCHES, method=method, settings=settings)
    for _ in range(2):
        assert_same(bitsplit.quantize(network, BATCHES, method=method, settings=settings, known=known), expected)
        assert_equal(known, before)
    assert_equal(dict(network.state_dict()), dict(state))


@pytest.mark.parametrize("mode", ["shift", "reestimate"])
@pytest.mark.parametrize("part", PARTS)
def test_any_part_may_be_known(network, part, mode):
    settings = settings_of(mode)
    known = ptq.Known(**{part: getattr(known_of(network, methods.named("bitsplit"), settings), part)})
    before = copy.deepcopy(known)
    quantized = bitsplit.quantize(network, BATCHES, settings=settings, known=known)
    assert_same(quantized, bitsplit.quantize(network, BATCHES, settings=settings))
    assert_equal(known, before)


@pytest.mark.parametrize("part", PARTS)
def test_what_is_known_is_not_computed_again(network, part, monkeypatch):
    settings = settings_of("shift")
    known = known_of(network, methods.named("bitsplit"), settings)

    def computed(*_):
        raise AssertionError(part)

    place = {
        "reads": "bitsplit.plan.measure_reads",
        "statistics": "bitsplit.ptq.measure_statistics",
        "float_norms": "bitsplit.ptq.measure_norms",
        "weights": "bitsplit.ptq.quantize_weights",
    }[part]
    monkeypatch.setattr(place, computed)
    bitsplit.quantize(network, BATCHES, settings=settings, known=known)
    with pytest.raises(AssertionError, match=part):
        rest = dataclasses.replace(known, **{part: None})
        bitsplit.quantize(network, BATCHES, settings=settings, known=rest)


@every_method
def test_a_network_shares_no_memory_with_what_is_known(network, method):
    """What happens to one network must not reach the next one from the same values."""
    known = known_of(network, method)
    before = copy.deepcopy(known)
    quantized = bitsplit.quantize(network, BATCHES, method=method, settings=SMALL, known=known)
    for value in quantized.state_dict().values():
        value.zero_()
    assert_equal(known, before)


@every_method
def test_weights_shared_between_activation_bits_give_the_same_result(network, method):
    settings = [dataclasses.replace(SMALL, bits=Bits(4, abits)) for abits in (32, 8, 4)]
    known = known_of(network, method, settings[0])
    for asked in settings:
        alone = bitsplit.quantize(network, BATCHES, method=method, settings=asked)
        shared = bitsplit.quantize(network, BATCHES, method=method, settings=asked, known=known)
        assert shared.report.equals(alone.report)
        for batch in BATCHES:
            assert torch.equal(shared(batch), alone(batch))


@every_method
def test_statistics_serve_every_method_and_bit_width(network, method):
    known = dataclasses.replace(known_of(network, methods.named("tflite")), weights=None, float_norms=None)
    for bits in (3, 8):
        alone = bitsplit.quantize(network, BATCHES, bits, bits, method, settings=SMALL)
        assert_same(bitsplit.quantize(network, BATCHES, bits, bits, method, settings=SMALL, known=known), alone)
