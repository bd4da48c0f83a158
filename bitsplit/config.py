"""What a quantization run is asked to do: frozen dataclasses whose fields are the YAML keys of `conf/config.yaml`."""

from dataclasses import dataclass, field, fields, replace

from bitsplit.errors import InputError

FLOAT_BITS = 32  # the bit-width that means "leave it in floating point"
AUTO = "auto"  # what the method prescribes
BATCH_NORM_MODES = (AUTO, "none", "reestimate", "shift")


def check_bits(name: str, bits: object) -> int:
    """`bits` if it is 2..8 or 32; InputError otherwise."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not (2 <= bits <= 8 or bits == FLOAT_BITS):
        raise InputError(f"{name} must be an integer from 2 to 8, or 32 for floating point; got {bits!r}")
    return bits


def _check_positive(settings: object, *skip: str) -> None:
    for entry in fields(settings):
        value = getattr(settings, entry.name)
        if entry.name not in skip and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"{entry.name} must be a positive integer, got {value!r}")


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
                check_bits(entry.name, value)

    def decided(self, prescribed: int) -> "Bits":
        """These bits with "auto" decided, for a method that prescribes a bit-width for the first and last layer."""
        edges = ("first_wbits", "last_wbits", "last_abits")
        return replace(self, **{name: prescribed for name in edges if getattr(self, name) == AUTO})

    @property
    def floating_point(self) -> bool:
        return self.wbits == FLOAT_BITS and self.abits == FLOAT_BITS

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
    """How much calibration data each step reads; a step takes what there is where there is less.

    >>> Calibration(batch_size=16)  # for few pictures
    Calibration(batch_size=16, gram_batches=30, patches=12000, scale_batches=10, samples=200000)
    """

    batch_size: int = 64
    gram_batches: int = 30  # batches for the Gram matrices
    patches: int = 12_000  # patches per layer over all those batches
    scale_batches: int = 10  # batches for the activation scales
    samples: int = 200_000  # input values per layer over all those batches

    def __post_init__(self) -> None:
        _check_positive(self)


@dataclass(frozen=True)
class BatchNorm:
    """Re-estimation of the batch-norm statistics (no labels, no gradients).

    mode: "reestimate" replaces the running statistics by those of the calibration pictures, "shift" moves them by the
    difference between the quantized and the floating-point network's on the same pictures, "none" leaves them. "auto"
    is what the method prescribes, but "shift" for "reestimate" where the data has fewer than `batches` batches: the
    statistics of few pictures are further from the trained ones than quantization takes them.

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
    """The layers that play a part of their own, each by its name or that of a module which holds it.

    predictions: those with the bits of the last layer; where none is named, the last one called.
    floating_point: those left as they are.
    """

    predictions: tuple[str, ...] = ()
    floating_point: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """Everything about a quantization beyond network, data and method: the `settings` of `bitsplit.quantize`.

    >>> settings = Settings(Bits(first_wbits=4), batch_norm=BatchNorm(mode="none"))
    >>> settings.bits.first_wbits, settings.calibration.patches, settings.batch_norm.mode
    (4, 12000, 'none')
    """

    bits: Bits = field(default_factory=Bits)
    calibration: Calibration = field(default_factory=Calibration)
    batch_norm: BatchNorm = field(default_factory=BatchNorm)
    seed: int = 0
    layers: Layers = field(default_factory=Layers)

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"seed must be an integer of at least 0, got {self.seed!r}")
