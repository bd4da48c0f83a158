"""What a quantization run is asked to do: frozen dataclasses whose fields are the YAML keys of `conf/config.yaml`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral

from bitsplit.errors import InputError

MOST_BITS = 8  # of an integer
FLOAT_BITS = 32  # the bit-width that means "leave it in floating point"
AUTO = "auto"  # what the method prescribes
BATCH_NORM_MODES = (AUTO, "none", "reestimate", "shift")
CONVENTIONS = ("bitsplit", "brecq", "qdrop", "all_low")


def check_bits(name: str, bits: object, floating_point: bool = True) -> int:
    """`bits` as an int if it is 2..8, or with `floating_point` 32; InputError otherwise."""
    valid = isinstance(bits, Integral) and not isinstance(bits, bool)
    if valid and (2 <= bits <= MOST_BITS or (floating_point and bits == FLOAT_BITS)):
        return int(bits)
    allowed = "from 2 to 8, or 32 for floating point" if floating_point else "from 2 to 8"
    raise InputError(f"{name} must be an integer {allowed}; got {bits!r}")


def _check_positive(settings: object, *skip: str) -> None:
    for entry in fields(settings):
        value = getattr(settings, entry.name)
        if entry.name in skip:
            continue
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise InputError(f"{entry.name} must be a positive integer, got {value!r}")
        object.__setattr__(settings, entry.name, int(value))


def _check_size(name: str, gigabytes: object) -> None:
    number = isinstance(gigabytes, (int, float)) and not isinstance(gigabytes, bool)
    if not number or not 0 < gigabytes < math.inf:  # JSON has no infinity
        raise InputError(f"{name} must be a positive number, and no infinite one; got {gigabytes!r}")


@dataclass(frozen=True)
class Bits:
    """Bit-widths by role. The image that enters the first layer is never quantized (the authors' convention).

    "auto" for the first and the last layer is what the method prescribes: 8, or 32 where it leaves them alone.

    >>> bits = Bits(wbits=4, abits=4).decided(prescribed=8)
    >>> {role: bits.of(role) for role in ("first", "other", "last")}
    {'first': (8, 32), 'other': (4, 4), 'last': (8, 8)}
    """

    wbits: int = 4
    abits: int = 4
    first_wbits: int | str = AUTO
    last_wbits: int | str = AUTO
    last_abits: int | str = AUTO

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name in ("wbits", "abits") or value != AUTO:
                object.__setattr__(self, entry.name, check_bits(entry.name, value))

    def decided(self, prescribed: int, convention: str = "bitsplit") -> "Bits":
        """These bits with "auto" decided, for a method that prescribes a bit-width for the first and last layer.

        Of the other conventions "all_low" takes the bits of all layers there, the rest 8, whatever the method says.
        """
        edge_bits = prescribed if convention == "bitsplit" else 8
        edges = dict.fromkeys(("first_wbits", "last_wbits", "last_abits"), edge_bits)
        if convention == "all_low":
            edges = {"first_wbits": self.wbits, "last_wbits": self.wbits, "last_abits": self.abits}
        return replace(self, **{name: bits for name, bits in edges.items() if getattr(self, name) == AUTO})

    def of(self, role: str) -> tuple[int, int]:
        """(weight bits, input bits) of a layer in the role "first", "last", "only" or "other".

        A side that is asked for in floating point (32) stays so in every role.
        """
        weight = {"first": self.first_wbits, "last": self.last_wbits, "only": self.last_wbits}.get(role, self.wbits)
        inputs = {"first": FLOAT_BITS, "last": self.last_abits, "only": FLOAT_BITS}.get(role, self.abits)
        return (
            FLOAT_BITS if self.wbits == FLOAT_BITS else weight,
            FLOAT_BITS if self.abits == FLOAT_BITS else inputs,
        )


@dataclass(frozen=True)
class Calibration:
    """How much calibration data each step reads; a step takes what there is where there is less. Numbers of batches
    count batches of `batch_size` images: from a loader with smaller ones, more of them are read.

    >>> Calibration(batch_size=16)  # for few images
    Calibration(batch_size=16, gram_batches=30, patches=12000, scale_batches=10, samples=200000, lockstep_batches=64, \
lockstep_patches=24000, memory_gb=8)
    """

    batch_size: int = 64
    gram_batches: int = 30  # batches for the Gram matrices
    patches: int = 12_000  # patches per layer over all those batches
    scale_batches: int = 10  # batches for the activation scales
    samples: int = 200_000  # input values per layer over all those batches
    lockstep_batches: int = 64  # batches in lock-step, of methods in the sequential order
    lockstep_patches: int = 24_000  # patches per layer over all those batches
    memory_gb: float = 8  # what forwards that wait in lock-step may hold; fewer images are in it where they hold more

    def __post_init__(self) -> None:
        _check_positive(self, "memory_gb")
        _check_size("memory_gb", self.memory_gb)


@dataclass(frozen=True)
class Cache:
    """What runs keep for each other on this machine: statistics, weights, predictions; no result depends on it.

    >>> Cache(max_gb=0.5)
    Cache(max_gb=0.5)
    """

    max_gb: float = 50  # of all that is kept; what was used last stays

    def __post_init__(self) -> None:
        _check_size("max_gb", self.max_gb)


@dataclass(frozen=True)
class BatchNorm:
    """Re-estimation of the batch-norm statistics (no labels, no gradients).

    mode: "reestimate" replaces the running statistics by those of the calibration images, "shift" moves them by the
    difference between the quantized and the floating-point network's on the same images, "none" leaves them. "auto"
    is what the method prescribes, but "shift" for "reestimate" where the data has fewer than `batches` batches: the
    statistics of few images are further from the trained ones than quantization takes them.

    >>> BatchNorm().decided("reestimate", available=15).mode
    'shift'
    """

    mode: str = AUTO
    batches: int = 100  # the authors run 200; with their momentum the first 100 weigh 3e-5 of the result
    momentum: float = 0.1

    def __post_init__(self) -> None:
        _check_positive(self, "mode", "momentum")
        if self.mode not in BATCH_NORM_MODES:
            raise InputError(f"batch_norm.mode must be one of {', '.join(BATCH_NORM_MODES)}; got {self.mode!r}")
        if isinstance(self.momentum, bool) or not isinstance(self.momentum, (int, float)) or not 0 < self.momentum <= 1:
            raise InputError(f"batch_norm.momentum must be in (0, 1], got {self.momentum!r}")

    def decided(self, prescribed: str, available: int) -> "BatchNorm":
        """These settings with "auto" decided, for a method that prescribes a mode and data of `available` batches."""
        if self.mode != AUTO:
            return self
        scarce = prescribed == "reestimate" and available < self.batches
        return replace(self, mode="shift" if scarce else prescribed)


@dataclass(frozen=True)
class Layers:
    """The layers that play a part of their own.

    predictions: those with the bits of the last layer, each by its name or that of a module which holds it; where none
    is named, the last one called. floating_point: those left as they are, named likewise. bits: pairs (pattern, (wbits,
    abits)) of bit-widths for the layers whose name matches a pattern such as "layer4.*"; of several patterns that match
    the last one counts. Bits given so come before those of any role.

    >>> Layers(bits={"layer4.*": (8, 8), "fc": (4, 4)}).bits
    (('layer4.*', (8, 8)), ('fc', (4, 4)))
    """

    predictions: tuple[str, ...] = ()
    floating_point: tuple[str, ...] = ()
    bits: tuple[tuple[str, tuple[int, int]], ...] = ()

    def __post_init__(self) -> None:
        pairs = self.bits.items() if isinstance(self.bits, Mapping) else self.bits
        object.__setattr__(self, "bits", tuple((str(pattern), _bit_pair(pattern, pair)) for pattern, pair in pairs))


def _bit_pair(pattern: str, pair: object) -> tuple[int, int]:
    try:
        wbits, abits = pair
    except (TypeError, ValueError):
        raise InputError(f"bits of {pattern!r} must be a pair (wbits, abits), got {pair!r}") from None
    return check_bits(f"wbits of {pattern!r}", wbits), check_bits(f"abits of {pattern!r}", abits)


@dataclass(frozen=True)
class Settings:
    """Everything about a quantization beyond network, data and method: the `settings` of `bitsplit.quantize`.

    convention: what else is quantized, and to how many bits, as the authors of different methods have it; numbers
    compare under one alone (docs/method.md, section 8). "bitsplit" is the paper's.

    >>> settings = Settings(Bits(first_wbits=4), batch_norm=BatchNorm(mode="none"))
    >>> settings.bits.first_wbits, settings.calibration.patches, settings.batch_norm.mode
    (4, 12000, 'none')
    """

    bits: Bits = field(default_factory=Bits)
    calibration: Calibration = field(default_factory=Calibration)
    batch_norm: BatchNorm = field(default_factory=BatchNorm)
    seed: int = 0
    layers: Layers = field(default_factory=Layers)
    convention: str = "bitsplit"

    def __post_init__(self) -> None:
        if self.convention not in CONVENTIONS:
            raise InputError(f"convention must be one of {', '.join(CONVENTIONS)}; got {self.convention!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, Integral) or not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be an integer of at least 0 and below 2^63, got {self.seed!r}")
        object.__setattr__(self, "seed", int(self.seed))

    @property
    def most_batches(self) -> int:
        """How many calibration batches the step reads that reads the most of them."""
        counts = self.calibration.gram_batches, self.calibration.scale_batches, self.calibration.lockstep_batches
        return max(*counts, self.batch_norm.batches)

    @property
    def quantized_shortcuts(self) -> bool:
        """Whether an addition reads the integers that the layers read beside it."""
        return self.convention in ("brecq", "qdrop")

    @property
    def floating_point(self) -> bool:
        """Whether nothing at all is asked for in integers."""
        pairs = [(self.bits.wbits, self.bits.abits), *(pair for _, pair in self.layers.bits)]
        return all(pair == (FLOAT_BITS, FLOAT_BITS) for pair in pairs)

    def overridden(
        self,
        wbits: int | None = None,
        abits: int | None = None,
        bits: Mapping[str, tuple[int, int]] | None = None,
        seed: int | None = None,
    ) -> "Settings":
        """These settings with what is given in the place of their own.

        >>> Settings(Bits(3, 3)).overridden(abits=8).bits
        Bits(wbits=3, abits=8, first_wbits='auto', last_wbits='auto', last_abits='auto')
        """
        widths = {name: value for name, value in (("wbits", wbits), ("abits", abits)) if value is not None}
        return replace(
            self,
            bits=replace(self.bits, **widths),
            layers=self.layers if bits is None else replace(self.layers, bits=bits),
            seed=self.seed if seed is None else seed,
        )
