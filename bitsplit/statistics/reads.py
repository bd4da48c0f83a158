"""Which tensors each layer reads in one forward, in what order, and whether batch-norm reads its output: what roles,
shared quantizers and the means of outputs are decided from."""

import collections
import itertools
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from bitsplit.layers.batch_norm import norms_by_mean
from bitsplit.layout import WEIGHTED, by_column, grouped, trailing_dimensions, ungrouped, weighted_layers
from bitsplit.statistics.capture import LayerCall, NumberedCalls

_VALUES = 1_000  # of what a layer reads that are looked for in what it was given
_ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}


@dataclass(frozen=True)
class Shortcut:
    """What is added to a layer's output: the tensor of this number (`NumberedCalls`), there before the layer is called,
    and the batch-norm layer, if any, that the output goes through before."""

    number: int
    norm: str | None


@dataclass(frozen=True)
class LayerReads:
    """What one layer reads in a forward, call by call: a number for each tensor, the same for every layer that reads
    the very same one, and its size as a part of all that the layer reads; and what becomes of its output: whether
    batch-norm reads it, whether that norm is called for others too, and the shortcut that is added. `plain`: whether
    its module does nothing with its input but what `_is_plain` says, and is called once for each call of the layer.
    `image`: whether it reads the image, or what no layer had a part in. `lent`: whether its weight is also used
    elsewhere.
    """

    tensors: tuple[int, ...]
    shares: tuple[float, ...]
    normalised: bool = False
    shared_norm: bool = False
    shortcut: Shortcut | None = None
    plain: bool = True
    image: bool = False
    lent: bool = False


@torch.no_grad()
def measure_reads(network: nn.Module, images: Tensor) -> dict[str, LayerReads]:
    """The reads of every layer that a forward of `images` calls, in the order of the first calls."""
    network(images.clone())  # the first forward of all may make what later ones only use, and number tensors anew
    calls = _ReadCalls(network, images)
    with calls:
        network(images)
    return calls.reads()


def _has_torchs_forward(layer: nn.Module) -> bool:
    return "forward" not in vars(layer) and any(type(layer).forward is kind.forward for kind in WEIGHTED)


def _is_plain(layer: nn.Module, args: tuple, kwargs: dict, read: Tensor) -> bool:
    """Whether a quantizer of the layer's input x gives `read`, what its arithmetic reads of it, values of the grid, and
    scales by channel can move into its weight: where its forward pads or cuts x, but not where it, or a hook, scales or
    normalises it, adds it to the output or joins it to something else, which must see x as it is."""
    x, *others = args or (kwargs.pop("input"),)
    if not isinstance(x, Tensor):
        return False
    first = 1 if len(x) == len(read) else None  # image, for a short time
    some = read[:first].flatten()
    if not torch.isin(some[:: -(-len(some) // _VALUES)], torch.cat([x[:first].flatten(), x.new_zeros(1)])).all():
        return False
    trailing = trailing_dimensions(layer)
    channels = x.shape[-1 - trailing]
    # Powers of two, which are exact in every product.
    scale = torch.where(torch.arange(channels, device=x.device) % 2 == 0, 2.0, 0.5).to(x.dtype)
    weight = grouped(layer.weight, layer)
    if weight.shape[0] * weight.shape[-1] % channels:
        return False
    by_channel = scale.reshape(-1, *[1] * trailing)
    scaled = ungrouped(weight * by_column(scale, weight), layer)
    before = layer(x.clone(), *others, **kwargs)
    after = torch.func.functional_call(layer, {"weight": scaled}, (x / by_channel, *others), kwargs)
    if not isinstance(before, Tensor) or not before.numel():
        return False
    return torch.allclose(before, after, rtol=1e-3, atol=1e-3 * before.abs().max().item(), equal_nan=True)


class _ReadCalls(NumberedCalls):
    """Also follows the layers' outputs to the batch-norm and the addition behind them, and the images to the layers."""

    def __init__(self, network: nn.Module, images: Tensor):
        layers = weighted_layers(network)
        super().__init__(network, layers, self._record)
        self._image = WeakIdKeyDictionary({images: True})  # and what is made of it without a layer
        self._of_layers = WeakIdKeyDictionary()
        self._given: dict[nn.Module, tuple[tuple, dict]] = {}  # to the layers that are running
        # By layer, its module and what that was given and reads, where it may do more than read.
        self._own: dict[str, tuple[nn.Module, tuple, dict, Tensor]] = {}
        self._several: set[str] = set()  # whose module calls them more than once
        self._reading_image: set[str] = set()
        # Each place that one of these reads has outputs in several places, and a shortcut in none of its own.
        self._spreading = {name for name, layer in layers.items() if isinstance(layer, nn.ConvTranspose2d)}
        self._recorder = ReadRecorder()
        self._norm_names = norms_by_mean(network)
        self._called: str | None = None
        self._begun: dict[str, int] = {}  # by layer, the number of the first tensor after it was called
        self._made: list[tuple[weakref.ref, int, str | None, str | None]] = []  # tensor, number, its layer, its norm
        self._normalised: dict[str, str | None] = {}  # by layer, the norm, where that has a mean
        self._norm_calls: collections.Counter[str] = collections.Counter()
        self._shortcuts: dict[str, Shortcut] = {}

    def watch(self) -> None:
        super().watch()
        for module in self._network.modules():
            if isinstance(module, WEIGHTED):  # before its own hooks
                self._hooks.append(module.register_forward_pre_hook(self._note, with_kwargs=True, prepend=True))

    def _note(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._given[module] = args, kwargs

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs)
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        # A vector of parameters normalises the image; a matrix makes features of it.
        matrix = any(isinstance(value, nn.Parameter) and value.numel() > max(value.shape, default=1) for value in given)
        if matrix or any(value in self._of_layers for value in given):
            self._of_layers.update((leaf, True) for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        elif any(value in self._image for value in given):
            self._image.update((leaf, True) for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result

    def _record(self, name: str, call: LayerCall) -> None:
        self._recorder.add(name, call)
        self._called = name
        if call.input in self._image:
            self._reading_image.add(name)
        module = self._running[-1]
        if module not in self._given:
            self._several.add(name)
            return
        args, kwargs = self._given.pop(module)
        if not (args and args[0] is call.input and _has_torchs_forward(module)):
            self._own[name] = module, args, kwargs, call.input

    def returned(self, number: int, func: Callable, args: tuple, kwargs: dict, result: Tensor) -> None:
        layer, norm = self._called, None
        if layer:
            self._begun.setdefault(layer, number)
        elif func is F.batch_norm and len(args) > 1:
            _, layer, _ = self._origin(args[0])
            norm = self._norm_names.get(id(args[1]))
            if norm:
                self._norm_calls[norm] += 1
            if layer and (norm or args[1] is None):  # its mean moves; a frozen one's stays
                self._normalised[layer] = norm
        elif getattr(func, "__name__", "") in _ADDITIONS and len(args) == 2 and not kwargs:
            self._add(*args)
        self._called = None
        self._made = [made for made in self._made if (tensor := made[0]()) is not None and tensor is not result]
        self._made.append((weakref.ref(result), number, layer, norm))

    def _add(self, *operands: object) -> None:
        if not all(isinstance(operand, Tensor) for operand in operands) or operands[0].shape != operands[1].shape:
            return
        for one, other in (operands, operands[::-1]):
            _, layer, norm = self._origin(one)
            number, _, _ = self._origin(other)
            if layer and layer not in self._spreading and number is not None and number < self._begun[layer]:
                self._shortcuts[layer] = Shortcut(number, norm)

    def _origin(self, tensor: Tensor) -> tuple[int | None, str | None, str | None]:
        return next((made[1:] for made in self._made if made[0]() is tensor), (None, None, None))

    def reads(self) -> dict[str, LayerReads]:
        return {
            name: replace(
                reads,
                normalised=name in self._normalised,
                shared_norm=self._norm_calls[self._normalised.get(name)] > 1,
                shortcut=self._shortcuts.get(name),
                plain=name not in self._several and (name not in self._own or _is_plain(*self._own[name])),
                image=name in self._reading_image,
                lent=f"{name}.weight" in self.skipped,
            )
            for name, reads in self._recorder.reads().items()
        }


class ReadRecorder:
    """Sees the calls of one forward; `add` returns how many calls of the layer came before."""

    def __init__(self) -> None:
        self._alive: list[tuple[weakref.ref, int, int]] = []  # tensor, its version, its number
        self._numbers = itertools.count()
        self._tensors: dict[str, list[int]] = collections.defaultdict(list)
        self._sizes: dict[str, list[int]] = collections.defaultdict(list)

    def add(self, name: str, call: LayerCall) -> int:
        self._tensors[name].append(self._number(call.input))
        self._sizes[name].append(call.input.numel())
        return len(self._tensors[name]) - 1

    def _number(self, tensor: Tensor) -> int:
        # Another one after a change in place; tensors of inference mode have none, and such changes go unnoticed.
        version = 0 if tensor.is_inference() else tensor._version
        self._alive = [seen for seen in self._alive if seen[0]() is not None]
        same = (number for reference, at, number in self._alive if reference() is tensor and at == version)
        if (number := next(same, None)) is None:
            number = next(self._numbers)
            self._alive.append((weakref.ref(tensor), version, number))
        return number

    def reads(self) -> dict[str, LayerReads]:
        return {
            name: LayerReads(tuple(tensors), tuple(size / max(sum(self._sizes[name]), 1) for size in self._sizes[name]))
            for name, tensors in self._tensors.items()
        }
