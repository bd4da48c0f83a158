"""Every weighted layer's true input, caught where it is used: at the calls of `conv2d`, `conv_transpose2d` and
`linear`.

Convolutions with a forward of their own (static "same" padding, say) so show what their arithmetic really reads,
without tracing and without touching the network's source. The weight's identity names the layer.
"""

import math
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_CONV_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_LINEAR_ARGUMENTS = ("input", "weight", "bias")
_OTHER_WEIGHTED = {
    F.conv1d: "1-D convolution",
    F.conv3d: "3-D convolution",
    F.conv_transpose1d: "transposed convolution",
    F.conv_transpose3d: "transposed convolution",
    F.bilinear: "bilinear layer",
}


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer: its input as the arithmetic sees it, and a convolution's geometry (None for linear)."""

    input: Tensor
    weight: Tensor
    geometry: dict | None

    @property
    def groups(self) -> int:
        return self.geometry["groups"] if self.geometry else 1

    @property
    def channels(self) -> int:
        return self.input.shape[-1 if self.geometry is None else -3]

    @property
    def feature_map(self) -> Tensor:
        """A convolution's input as (images, C, H, W), an unbatched one included."""
        return self.input if self.input.dim() == 4 else self.input.unsqueeze(0)

    def patches(self, count: int, generator: torch.Generator) -> Tensor:
        """Up to `count` random columns of the im2col matrix, (G, count, N): the inputs of random output places."""
        return self.patches_at(self.places(count, generator))

    def places(self, count: int, generator: torch.Generator) -> Tensor:
        """Up to `count` random places of the output, numbered image by image and row by row."""
        if self.geometry is None:
            rows = self.input[..., 0].numel()
        else:
            rows = len(self.feature_map) * math.prod(self._map_size)
        return _choose(rows, count, generator, self.input.device)

    def patches_at(self, places: Tensor) -> Tensor:
        """The columns of the im2col matrix at `places`, (G, count, N).

        Gathered directly from the feature map; it is never unfolded as a whole.
        """
        if self.geometry is None:
            return self.input.reshape(-1, self.input.shape[-1])[places].unsqueeze(0)
        x, kernel = self.feature_map, self.geometry["kernel"]
        stride, dilation = _pair(self.geometry["stride"]), _pair(self.geometry["dilation"])
        padding = _padding(self.geometry["padding"], kernel, dilation)
        height, width = self._map_size
        image, corner = places // (height * width), (places // width % height, places % width)
        index, inside = [], []
        for axis in range(2):
            offsets = torch.arange(kernel[axis], device=x.device) * dilation[axis] - padding[axis][0]
            i = corner[axis].unsqueeze(-1) * stride[axis] + offsets
            size = x.shape[2 + axis]
            inside.append((i >= 0) & (i < size))
            index.append(i.clamp(0, size - 1))
        rows, columns = index[0].unsqueeze(-1), index[1].unsqueeze(-2)
        patch = x[image[:, None, None], :, rows, columns]  # (count, kh, kw, C)
        patch = patch * (inside[0].unsqueeze(-1) & inside[1].unsqueeze(-2)).unsqueeze(-1)
        # Contiguous, or the batched Gram product of a depthwise layer falls back to one small product a channel.
        patch = patch.reshape(len(places), kernel[0] * kernel[1], self.groups, -1)
        return patch.permute(2, 0, 3, 1).reshape(self.groups, len(places), -1).contiguous()

    def outputs_at(self, output: Tensor, places: Tensor) -> Tensor:
        """The values of `output`, of the shape of the layer's own, at `places`, (G, count, M)."""
        if self.geometry is None:
            rows = output.reshape(-1, output.shape[-1])[places]
        else:
            maps = output if output.dim() == 4 else output.unsqueeze(0)
            height, width = maps.shape[-2:]
            rows = maps[places // (height * width), :, places // width % height, places % width]
        return rows.reshape(len(places), self.groups, -1).transpose(0, 1)

    @property
    def _map_size(self) -> tuple[int, int]:
        """Height and width of a convolution's output."""
        stride, dilation = _pair(self.geometry["stride"]), _pair(self.geometry["dilation"])
        kernel = self.geometry["kernel"]
        padding = _padding(self.geometry["padding"], kernel, dilation)
        height, width = (
            (size + before + after - d * (k - 1) - 1) // s + 1
            for size, (before, after), k, s, d in zip(
                self.input.shape[-2:], padding, kernel, stride, dilation, strict=True
            )
        )
        return height, width

    def channel_vectors(self, count: int, generator: torch.Generator) -> Tensor:
        """Input values at up to `count` random positions, (count, C)."""
        if self.geometry is None:
            rows = self.input.reshape(-1, self.input.shape[-1])
            return rows[_choose(len(rows), count, generator, rows.device)]
        x = self.feature_map
        height, width = x.shape[-2:]
        position = _choose(len(x) * height * width, count, generator, x.device)
        return x[position // (height * width), :, position // width % height, position % width]


class LayerCalls(TorchFunctionMode):
    """While active, shows `visit(name, call)` every call of the given layers inside their own forward; the call reads
    the tensor that `visit` returns instead of its input, if it returns one.

    `skipped` collects, by parameter name, weights of the network that are used in any other way, with the reason.
    It sees the calls of the threads that enter it, any number of them between `watch` and `unwatch`; a single one that
    enters without does both itself. Its module hooks are gone afterwards, also when the body raises.
    """

    def __init__(
        self, network: nn.Module, layers: dict[str, nn.Module], visit: Callable[[str, LayerCall], Tensor | None]
    ):
        super().__init__()
        self._network = network
        self._names = {id(layer.weight): name for name, layer in layers.items()}
        self._parameters = {id(p): name for name, p in network.named_parameters()}
        self._parameters |= {weight: f"{name}.weight" for weight, name in self._names.items()}
        self._visit = visit
        self._thread = threading.local()
        self._hooks: list = []
        self.skipped: dict[str, str] = {}

    def __enter__(self):
        self._alone = not self._hooks
        if self._alone:
            self.watch()
        return super().__enter__()

    def __exit__(self, *exception):
        if self._alone:
            self.unwatch()
        return super().__exit__(*exception)

    def watch(self) -> None:
        """Begins to follow which layer is running."""
        for module in self._network.modules():
            if id(getattr(module, "weight", None)) in self._names:
                self._hooks.append(module.register_forward_pre_hook(lambda module, _: self._running.append(module)))
                self._hooks.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))

    def unwatch(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @property
    def _running(self) -> list[nn.Module]:
        return self._thread.__dict__.setdefault("running", [])

    def _leave(self) -> None:
        self._running.pop()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        read = None
        if func is F.conv2d:
            read = self._convolution(args, kwargs)
        elif func is F.conv_transpose2d:
            read = self._transposed(args, kwargs)
        elif func is F.linear:
            read = self._linear(args, kwargs)
        elif func in _OTHER_WEIGHTED:
            weight = args[1] if len(args) > 1 else kwargs.get("weight")
            self._skip(weight, f"a {_OTHER_WEIGHTED[func]}, which is not supported")
        if read is not None:
            args, kwargs = ((read, *args[1:]), kwargs) if args else (args, kwargs | {"input": read})
        lent = [value for value in tree_leaves((args, kwargs)) if id(value) in self._names and not self._inside(value)]
        result = func(*args, **kwargs)
        if lent and any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):  # not a shape, say
            for weight in lent:
                self._skip(weight, "used outside its module's forward, where its input cannot be quantized")
        return result

    def _convolution(self, args, kwargs) -> Tensor | None:
        bound = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
        bound |= dict(zip(_CONV_ARGUMENTS, args, strict=False)) | kwargs
        geometry = {key: bound[key] for key in ("stride", "padding", "dilation", "groups")}
        geometry["kernel"] = bound["weight"].shape[-2:]
        return self._call(LayerCall(bound["input"], bound["weight"], geometry))

    def _transposed(self, args, kwargs) -> Tensor | None:
        bound = {"stride": 1, "padding": 0, "groups": 1, "dilation": 1}
        bound |= dict(zip(_TRANSPOSED_ARGUMENTS, args, strict=False)) | kwargs
        sizes = zip(bound["weight"].shape[-2:], _pair(bound["dilation"]), _pair(bound["stride"]), strict=True)
        overlap = any(dilation * (kernel - 1) + 1 > stride for kernel, dilation, stride in sizes)
        if overlap or _pair(bound["padding"]) != (0, 0):
            reason = "a transposed convolution whose outputs overlap or are cut, which is not supported"
            self._skip(bound["weight"], reason)
            return None
        # Every output reads one place of the input.
        geometry = {"stride": 1, "padding": 0, "dilation": 1, "groups": bound["groups"], "kernel": (1, 1)}
        return self._call(LayerCall(bound["input"], bound["weight"], geometry))

    def _linear(self, args, kwargs) -> Tensor | None:
        bound = dict(zip(_LINEAR_ARGUMENTS, args, strict=False)) | kwargs
        return self._call(LayerCall(bound["input"], bound["weight"], None))

    def _call(self, call: LayerCall) -> Tensor | None:
        name = self._names.get(id(call.weight))
        if call.input.numel() == 0:
            return None  # of regions, say, where none was found
        if name is None:
            self._skip(call.weight, "not the weight of a convolution or linear module")
        elif self._inside(call.weight):
            return self._visit(name, call)
        return None

    def _inside(self, weight: Tensor) -> bool:
        """Whether the module is running whose weight this is."""
        return any(module.weight is weight for module in self._running)

    def _skip(self, weight: Tensor, reason: str) -> None:
        name = self._parameters.get(id(weight))
        if name is not None:
            self.skipped[name] = reason


class NumberedCalls(LayerCalls):
    """Also shows `returned(number, func, args, kwargs, result)` every tensor that a function returns, numbered within a
    thread: a tensor that two forwards of a network make at the same point has the same number in both."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs)
        if isinstance(result, Tensor):
            number = self._thread.__dict__.get("returned", 0)
            self._thread.returned = number + 1
            self.returned(number, func, args, kwargs or {}, result)
        return result

    def returned(self, number: int, func: Callable, args: tuple, kwargs: dict, result: Tensor) -> None:
        raise NotImplementedError


def _choose(total: int, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    if total <= count:
        return torch.arange(total, device=device)
    return torch.randint(total, (count,), generator=generator, device="cpu").to(device)


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[-1])


def _padding(padding, kernel, dilation) -> list[tuple[int, int]]:
    """(before, after) for height and width; "same" pads the odd pixel after, as torch does."""
    if padding == "valid":
        return [(0, 0), (0, 0)]
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(p, p) for p in _pair(padding)]


def layer_generators(network: nn.Module, stream: str, seed: int) -> dict[str, torch.Generator]:
    """A random stream of its own for each layer, so that one layer's draws never depend on another's; `stream` names it
    and holds "{}" for the layer's name. On the CPU, whose draws are the same beside every GPU."""
    # Hashed together: torch's CPU generator reads only the low 32 bits of its seed.
    return {
        name: torch.Generator().manual_seed(zlib.crc32(f"{seed}/{stream.format(name)}".encode()))
        for name, _ in network.named_modules()
    }
