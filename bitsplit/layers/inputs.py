"""Quantizers of what a layer reads: one scale for a tensor, one for each channel, or one for each call."""

import threading
from collections.abc import Iterable

import numba
import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Proxy

from bitsplit.grid import Grid
from bitsplit.solver.threads import may_loop_in_threads


class InputQuantizer(nn.Module):
    """Rounds a layer's input to `grid`, with one scale () for the whole tensor or one for each channel (C,).

    `positions` is the number of dimensions behind the channels': 2 for a convolution's input, 0 for a linear layer's.
    With `folded` the scales by channel divide the input, and one scale a tensor, their mean, multiplies the codes: the
    layer's weights hold the rest (ECAQ). With `in_place` the tensor itself is rounded, so that whatever else reads it
    after the layer, the addition behind a shortcut say, reads the same integers. `observed`, the least and the greatest
    value that calibration saw, is for people to compare the grid's ends with.
    """

    def __init__(
        self,
        grid: Grid,
        scale: Tensor,
        positions: int = 0,
        folded: bool = False,
        in_place: bool = False,
        observed: tuple[float, float] | None = None,
    ):
        super().__init__()
        self.signed, self.zero, self.folded, self.in_place = grid.signed, grid.zero, folded, in_place
        self.observed = observed
        by_channel = (-1, *[1] * positions)
        if isinstance(grid.bits, Tensor):
            self.register_buffer("bits", grid.bits.reshape(by_channel))
        else:
            self.bits = grid.bits
        self.register_buffer("scale", scale.detach().float().reshape(by_channel if scale.dim() else ()))

    @property
    def grid(self) -> Grid:
        return Grid(self.bits, self.signed, self.zero)

    @property
    def step(self) -> Tensor:
        """What a code is worth to the layer: () or of the shape of `scale`."""
        return self.scale.mean() if self.folded else self.scale

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Proxy):  # of torch.fx, which knows neither its device nor its type
            return self.rounded(x)
        plain = x.device.type == "cpu" and x.dtype == torch.float32 and self.scale.dim() == 0 and not x.requires_grad
        if plain and (torch.compiler.is_compiling() or may_loop_in_threads()):
            values = torch.ops.bitsplit.fake_quantize(x, self.scale, self.grid.low, self.grid.high)
            return x.copy_(values) if self.in_place and _has_places(x) else values
        return self.rounded(x)

    def rounded(self, x: Tensor) -> Tensor:
        """What `forward` gives, by torch's own operations, which several threads may run at once."""
        grid = self.grid
        codes = grid.quantize(x, self.scale)
        if self.in_place and _has_places(x):
            x.copy_(codes * self.scale)
        # Scales by channel are in single precision and would take a half-precision input with them.
        return codes.mul_(self.step).to(x.dtype)

    def extra_repr(self) -> str:
        bits = f"mean {self.bits.mean().item():.3g}" if isinstance(self.bits, Tensor) else self.bits
        scale = f"{self.scale.item():.4g}" if self.scale.numel() == 1 else f"{self.scale.numel()} channels"
        return f"bits={bits}, signed={self.signed}, scale={scale}"


def _has_places(x: Tensor) -> bool:
    """Whether each value has a place of its own; in a tensor that was expanded one stands for many."""
    return isinstance(x, Proxy) or 0 not in x.stride()


class CallQuantizers(nn.ModuleList):
    """The `InputQuantizer` of each call of one layer, in the order of its calls in a forward.

    A layer that is applied to all levels of a pyramid reads tensors of very different ranges; each is a tensor of its
    own, with a scale of its own. The network must call the layer as often in every forward as in calibration; after a
    forward that did not end, `restart` or the network's `eval` makes the next call the first again.
    """

    def __init__(self, quantizers: Iterable[InputQuantizer]):
        super().__init__(quantizers)
        self.restart()

    def restart(self) -> None:
        self._calls: dict[int, int] = {}  # by thread: several may run the network at once

    def train(self, mode: bool = True) -> "CallQuantizers":
        self.restart()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        thread = 0 if torch.compiler.is_compiling() else threading.get_ident()
        call = self._calls.get(thread, 0)
        self._calls[thread] = (call + 1) % len(self)
        return self[call](x)


def fake_quantize(values: Tensor, scale: float, low: int, high: int) -> Tensor:
    """`values`, float32, rounded to the codes low..high times `scale`: one pass over the memory, not four."""
    # Dense in whatever order of dimensions (channels last, say), so that memory is read from its start to its end.
    result = torch.empty_like(values)
    if result.stride() != values.stride():
        values = result.copy_(values)
    size = (values.numel(),)
    _fake_quantize(
        values.as_strided(size, (1,)).numpy(), np.float32(scale), low, high, result.as_strided(size, (1,)).numpy()
    )
    return result


# An operator of torch, which traces, exports and compiles see; it is there as long as this object.
_library = torch.library.Library("bitsplit", "DEF")
_library.define("fake_quantize(Tensor values, Tensor scale, int low, int high) -> Tensor")
_library.impl("fake_quantize", lambda values, scale, *ends: fake_quantize(values, scale.item(), *ends), "CPU")
torch.library.register_fake("bitsplit::fake_quantize", lambda values, *_: torch.empty_like(values))


@numba.njit(parallel=True, cache=True)
def _fake_quantize(values, scale, low, high, result):
    smallest, largest = np.float32(low), np.float32(high)
    for i in numba.prange(len(values)):
        code = np.rint(values[i] / scale)
        result[i] = scale * (smallest if code < smallest else largest if code > largest else code)
