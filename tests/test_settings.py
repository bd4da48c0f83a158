"""Settings: roles, validation, and what `auto` means for batch-norm."""

import numpy as np
import pytest

from bitsplit import methods
from bitsplit.errors import InputError
from bitsplit.settings import BatchNorm, Bits, Calibration, Layers, Settings


@pytest.mark.parametrize(
    ("bits", "role", "expected"),
    [
        (Bits(4, 4), "first", (8, 32)),
        (Bits(4, 4), "last", (8, 8)),
        (Bits(4, 4), "only", (8, 32)),
        (Bits(4, 3), "other", (4, 3)),
        (Bits(4, 32), "last", (8, 32)),
        (Bits(32, 4), "first", (32, 32)),
        (Bits(32, 4), "last", (32, 8)),
        (Bits(4, 4, first_wbits=4, last_wbits=32, last_abits=32), "last", (32, 32)),
    ],
)
def test_roles(bits, role, expected):
    assert bits.decided(8).of(role) == expected


@pytest.mark.parametrize("prescribed", [4, 8, 32])
def test_auto_is_what_the_method_prescribes_for_first_and_last_layer(prescribed):
    bits = Bits(5, 6).decided(prescribed)
    assert bits == Bits(5, 6, first_wbits=prescribed, last_wbits=prescribed, last_abits=prescribed)
    assert bits.of("first") == (prescribed, 32) and bits.of("last") == (prescribed, prescribed)
    assert bits.of("other") == (5, 6)
    assert bits.decided(2) == bits  # nothing is left to decide


def test_given_bits_are_not_decided():
    bits = Bits(4, 4, first_wbits=3, last_abits=32).decided(8)
    assert (bits.first_wbits, bits.last_wbits, bits.last_abits) == (3, 8, 32)
    assert Bits(32, 32).decided(8).of("last") == (32, 32)  # a side in floating point stays so in every role
    assert Settings(Bits(32, 32)).floating_point and not Settings(Bits(32, 4)).floating_point
    assert not Settings(Bits(32, 32), layers=Layers(bits={"fc": (4, 32)})).floating_point


def test_methods_prescribe_eight_bits_but_for_lapq():
    prescribed = {name: methods.named(name).edge_bits for name in methods.names()}
    assert prescribed == dict.fromkeys(prescribed, 8) | {"lapq": 32}


@pytest.mark.parametrize("bad", [1, 9, 0, -4, 31, 4.0, "4", None, True])
def test_bits_outside_the_range(bad):
    with pytest.raises(InputError, match="wbits"):
        Bits(wbits=bad)
    with pytest.raises(InputError, match="last_abits"):
        Bits(last_abits=bad)


@pytest.mark.parametrize("name", ["wbits", "abits"])
def test_auto_is_for_first_and_last_layer_only(name):
    with pytest.raises(InputError, match=name):
        Bits(**{name: "auto"})
    with pytest.raises(InputError, match="first_wbits"):
        Bits(first_wbits="automatic")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Calibration(batch_size=0),
        lambda: Calibration(patches=1.5),
        lambda: BatchNorm(mode="sometimes"),
        lambda: BatchNorm(batches=0),
        lambda: BatchNorm(momentum=0),
        lambda: BatchNorm(momentum="fast"),
        lambda: Settings(seed=-1),
        lambda: Settings(seed="0"),
    ],
)
def test_settings_outside_their_range(make):
    with pytest.raises(InputError):
        make()


@pytest.mark.parametrize(
    ("mode", "prescribed", "available", "expected"),
    [
        ("auto", "reestimate", 200, "reestimate"),
        ("auto", "reestimate", 199, "shift"),
        ("auto", "none", 3, "none"),
        ("reestimate", "none", 3, "reestimate"),
        ("none", "reestimate", 500, "none"),
    ],
)
def test_auto_is_the_methods_own_unless_images_are_few(mode, prescribed, available, expected):
    assert BatchNorm(mode=mode, batches=200).decided(prescribed, available).mode == expected


@pytest.mark.parametrize("pair", [4, (4,), (4, 4, 4), (4, 9), (True, 4), "44", None])
def test_bits_of_a_layer_are_a_pair_of_bit_widths(pair):
    with pytest.raises(InputError, match="'fc'"):
        Layers(bits={"fc": pair})


def test_numpys_integers_count_as_pythons():
    """As records write them: of a sweep over `np.arange`, say."""
    given = Settings(Bits(np.int64(4), np.int8(3)), Calibration(patches=np.int32(9)), seed=np.int64(7))
    assert given == Settings(Bits(4, 3), Calibration(patches=9), seed=7)
    assert {type(value) for value in (given.seed, given.calibration.patches, given.bits.wbits)} == {int}


def test_what_is_given_overrides_and_nothing_else():
    settings = Settings(Bits(3, 5, last_wbits=6), seed=7, layers=Layers(predictions=("fc",), bits={"a": (2, 2)}))
    assert settings.overridden() == settings
    assert settings.overridden(wbits=4).bits == Bits(4, 5, last_wbits=6)
    assert settings.overridden(seed=0).seed == 0
    assert settings.overridden(bits={"b": (8, 8)}).layers == Layers(predictions=("fc",), bits=(("b", (8, 8)),))
