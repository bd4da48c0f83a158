"""Settings: roles, validation, and what `auto` means for batch-norm."""

import pytest

from bitsplit.config import BatchNorm, Bits, Calibration, Settings
from bitsplit.errors import InputError


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
    assert bits.of(role) == expected


@pytest.mark.parametrize("bad", [1, 9, 0, -4, 31, 4.0, "4", None, True])
def test_bits_outside_the_range(bad):
    with pytest.raises(InputError, match="wbits"):
        Bits(wbits=bad)
    with pytest.raises(InputError, match="last_abits"):
        Bits(last_abits=bad)


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
def test_auto_is_the_methods_own_unless_pictures_are_few(mode, prescribed, available, expected):
    assert BatchNorm(mode=mode).decided(prescribed, available).mode == expected
