"""Who gets which bits: roles, patterns and everything that is "auto", decided once for a network, method and images."""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import nn

from bitsplit.errors import InputError
from bitsplit.layers.checks import check_wrapped
from bitsplit.layout import weighted_layers
from bitsplit.methods.base import Method
from bitsplit.settings import FLOAT_BITS, Layers, Settings
from bitsplit.statistics.batches import CalibrationBatches
from bitsplit.statistics.reads import LayerReads, measure_reads

_OTHER_CONVOLUTIONS = (nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class LayerPlan:
    """What is asked of one layer. role: "first", "last", "only" or "other", by the order of the calls in a forward."""

    role: str
    wbits: int
    abits: int


@dataclass(frozen=True)
class Plan:
    """A method, settings with nothing left to decide, what each layer reads in a forward, and what is asked of it.

    `layers` and `reads` are in the order of the first calls; layers that the measured forward did not call come last
    in `layers`, and are not in `reads`.
    """

    method: Method
    settings: Settings
    reads: dict[str, LayerReads]
    layers: dict[str, LayerPlan]

    @classmethod
    def of(
        cls,
        network: nn.Module,
        batches: CalibrationBatches,
        method: Method,
        settings: Settings,
        reads: dict[str, LayerReads] | None = None,
    ) -> "Plan":
        """`reads` where they have been measured already. Raises InputError where no layer is called, or a name or
        pattern in the settings fits none."""
        settings = decided(settings, method, batches.whole)
        check_names(network, settings.layers)
        if reads is None:
            images = batches.first_piece()
            check_wrapped(network, images[:2])
            reads = measure_reads(network, images)
        if not reads:
            raise InputError(_nothing_to_quantize(network))
        uncalled = [name for name in weighted_layers(network) if name not in reads]
        return cls(method, settings, reads, _layer_plans([*reads, *uncalled], reads, settings))

    def same_reads(self, name: str) -> tuple[int, ...] | str:
        """A key that layers have in common which read the very same tensors, call by call."""
        return self.reads[name].tensors if name in self.reads else name


def decided(settings: Settings, method: Method, batches: int) -> Settings:
    """`settings` with all that is "auto" decided as the method prescribes, for `batches` calibration batches."""
    return replace(
        settings,
        bits=settings.bits.decided(method.edge_bits, settings.convention),
        batch_norm=settings.batch_norm.decided(method.batch_norm, batches),
    )


def _nothing_to_quantize(network: nn.Module) -> str:
    others = sorted({type(module).__name__ for module in network.modules() if isinstance(module, _OTHER_CONVOLUTIONS)})
    if others and not weighted_layers(network):
        return (
            f"the network has {' and '.join(others)} layers alone, which bitsplit does not quantize; it quantizes "
            "Conv2d, ConvTranspose2d and Linear"
        )
    return "the network has no convolution or linear layer (Conv2d, ConvTranspose2d, Linear) that the images reach"


def _layer_plans(names: list[str], reads: dict[str, LayerReads], settings: Settings) -> dict[str, LayerPlan]:
    """The first layer called reads the image, the last makes the prediction, unless the settings name those that do.

    No layer that reads the image reads it quantized. Bits given by a pattern come before those of a role. BRECQ's
    convention has 8 bits for what the stem gives: the tensor that the second layer called reads.
    """
    called, layers = list(reads), settings.layers
    predictions = _held(names, layers.predictions) or called[-1:]
    roles = dict.fromkeys(names, "other") | {called[0]: "first"} | dict.fromkeys(predictions, "last")
    if len(called) == 1:
        roles[called[0]] = "only"
    image, untouched = reads[called[0]].tensors, _held(names, layers.floating_point)
    stem = reads[called[1]].tensors if settings.convention == "brecq" and len(called) > 1 else None
    plans = {}
    for name, role in roles.items():
        wbits, abits = settings.bits.of(role)
        if name in reads and reads[name].tensors == stem and abits != FLOAT_BITS:
            abits = 8
        for pattern, pair in layers.bits:
            if fnmatchcase(name, pattern):
                wbits, abits = pair
        if name in reads and (reads[name].tensors == image or reads[name].image or not reads[name].plain):
            abits = FLOAT_BITS
        plans[name] = LayerPlan(role, *((FLOAT_BITS, FLOAT_BITS) if name in untouched else (wbits, abits)))
    return plans


def check_names(network: nn.Module, layers: Layers) -> None:
    """InputError where a name or pattern in `layers` fits no layer of the network."""
    names = list(weighted_layers(network))
    for holder in (*layers.predictions, *layers.floating_point):
        if not _held(names, (holder,)):
            raise InputError(f"no layer is named {holder!r} or lies in it; the layers are {', '.join(names)}")
    for pattern, _ in layers.bits:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(f"no layer's name matches {pattern!r}; the layers are {', '.join(names)}")


def _held(names: list[str], holders: tuple[str, ...]) -> list[str]:
    """The layers that `holders` name or hold."""
    return [name for name in names if any(f"{name}.".startswith(f"{holder}.") for holder in holders)]
