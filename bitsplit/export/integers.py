"""Proof that integers compute the same: every quantized layer in exact integer arithmetic, against the simulation."""

import copy
from dataclasses import dataclass

import numpy as np
import pandas
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bitsplit.errors import InputError
from bitsplit.export.integer_form import ARITHMETIC, ArithmeticCall, integer_form
from bitsplit.export.packed.bit_packing import row_widths
from bitsplit.layers.inputs import InputQuantizer
from bitsplit.layers.precision import full_precision
from bitsplit.layers.quantized import QuantizedLayer
from bitsplit.layout import WEIGHTED, grouped
from bitsplit.progress import progress
from bitsplit.settings import FLOAT_BITS
from bitsplit.statistics.batches import CalibrationBatches, pieces


@full_precision()
@torch.no_grad()
def verify(qmodel: nn.Module, images: Tensor) -> pandas.DataFrame:
    """Runs every quantized layer in exact integer arithmetic and compares it with what the simulation computes.

    qmodel: what `quantize` returns; it is left as it is. images: (N, C, H, W), as the network reads them.

    Returns one row a layer, over all of its calls on these images:
    name, wbits, abits (a mean where channels have bits of their own);
    deviation: the greatest difference from the simulation's output, relative to the greatest magnitude of that call's;
    rescale_deviation: the same where the simulation, too, adds up in double precision, so that nothing but the rounding
    of scales and of the product with them is left;
    accumulator_bits: of the signed integers that hold all sums seen; worst_case_bits: all sums that any input can give;
    weight_clip, input_clip: shares of codes at the ends of the grid (0 is none: an unsigned grid cuts off at the top);
    note: why a layer has no integer form, or no numbers.

    The frame's `attrs` compare the output of the whole network with all layers in integers and with none, where it is
    one tensor: "deviation" as above, and "agreement", the share of images of the same top-1 class. A value on the
    boundary between two codes may fall to either side of it, and the layers that follow then read another input.

    Raises InputError where no layer is quantized.

    >>> import bitsplit
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    >>> images = torch.rand(8, 3, 8, 8)
    >>> table = verify(bitsplit.quantize(model, [images], wbits=4, abits=4), images)
    >>> table[["name", "wbits", "abits", "note"]].values.tolist()
    [['0', 8, 32, 'its input is in floating point'], ['2', 4, 4, ''], ['4', 8, 8, '']]
    >>> bool(table.deviation.max() < 1e-5)
    True
    """
    network = copy.deepcopy(qmodel).eval()
    wrappers = {module for module in network.modules() if isinstance(module, QuantizedLayer)}
    if not wrappers:
        raise InputError("no layer of this network is quantized: give what bitsplit.quantize returns")
    parts = [piece for piece, _ in pieces(CalibrationBatches([images], network).first(1))]
    outputs = []
    with _IntegerCalls(wrappers) as calls:
        for piece in progress(parts, "integers"):
            calls.in_place = False
            simulated = network(piece.clone())  # the network may change its input
            calls.in_place = True
            outputs.append((simulated, network(piece)))
    layers = {wrapper.layer for wrapper in wrappers}
    rows = []
    for name, module in network.named_modules():
        if module in wrappers:
            rows.append({"name": name, **_row(calls.proofs[module])})
        elif isinstance(module, WEIGHTED) and module not in layers:
            rows.append({"name": name, "wbits": FLOAT_BITS, "abits": FLOAT_BITS, "note": "it is in floating point"})
    table = pandas.DataFrame(rows, columns=_COLUMNS)
    table.attrs = _agreement(outputs)
    return table


_COLUMNS = (
    *("name", "wbits", "abits", "deviation", "rescale_deviation"),
    *("accumulator_bits", "worst_case_bits", "weight_clip", "input_clip", "note"),
)


@dataclass
class _Proof:
    """What the calls of one layer have shown; `note` says why they show nothing."""

    wrapper: QuantizedLayer
    note: str = "it is not called on these images"
    deviation: float = 0.0
    rescale_deviation: float = 0.0
    low: int = 0
    high: int = 0
    clipped: int = 0
    read: int = 0


class _IntegerCalls(TorchFunctionMode):
    """While active, computes all calls of the wrapped layers in integers as well.

    With `in_place` the network goes on with these outputs instead of its own, and `proofs` are left as they are.
    """

    def __init__(self, wrappers: set[QuantizedLayer]):
        super().__init__()
        self.in_place = False
        self.proofs = {wrapper: _Proof(wrapper) for wrapper in wrappers}
        self._running: list[tuple[QuantizedLayer, list[InputQuantizer]]] = []
        self._hooks: list = []

    def __enter__(self):
        for wrapper in self.proofs:
            self._hooks.append(wrapper.register_forward_pre_hook(lambda module, _: self._running.append((module, []))))
            self._hooks.append(wrapper.register_forward_hook(lambda *_: self._leave(), always_call=True))
        for quantizer in {quantizer for wrapper in self.proofs for quantizer in wrapper.input_quantizers}:
            self._hooks.append(quantizer.register_forward_hook(self._read))
        return super().__enter__()

    def __exit__(self, *exception):
        for hook in self._hooks:
            hook.remove()
        return super().__exit__(*exception)

    def _leave(self) -> None:
        self._running.pop()

    def _read(self, quantizer: InputQuantizer, _, x: Tensor) -> None:
        """Remembers which quantizer, of several calls', has rounded the running layer's input."""
        wrapper, read = self._running[-1]
        read.append(quantizer)
        if not self.in_place:
            proof, grid, codes = self.proofs[wrapper], quantizer.grid, (x / quantizer.step).round()
            proof.clipped += int(((codes >= grid.high) | ((codes <= grid.low) & (codes < 0))).sum())
            proof.read += codes.numel()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in ARITHMETIC or not self._running:
            return func(*args, **kwargs)
        (wrapper, read), call = self._running[-1], ArithmeticCall.of(func, args, kwargs)
        if call.weight is not wrapper.layer.weight:
            return func(*args, **kwargs)
        integers = integer_form(wrapper, read[-1] if read else None, call)
        if isinstance(integers, str):
            self.proofs[wrapper].note = integers
            return call.output()
        if self.in_place:
            return integers.output
        simulated, proof = call.output(), self.proofs[wrapper]
        proof.note = ""
        proof.deviation = max(proof.deviation, _relative(integers.output, simulated))
        proof.rescale_deviation = max(proof.rescale_deviation, _relative(integers.output, call.double().output()))
        proof.low, proof.high = min(proof.low, int(integers.sums.min())), max(proof.high, int(integers.sums.max()))
        return simulated


def _row(proof: _Proof) -> dict:
    wrapper, quantizers = proof.wrapper, proof.wrapper.input_quantizers
    bits = quantizers[0].bits if quantizers else FLOAT_BITS
    row = {
        "wbits": FLOAT_BITS if wrapper.codes is None else wrapper.wbits,
        "abits": bits.mean().item() if isinstance(bits, Tensor) else bits,
        "note": proof.note,
    }
    if wrapper.codes is not None:
        row["weight_clip"] = _share_at_ends(wrapper)
    if proof.read:
        row["input_clip"] = proof.clipped / proof.read
    if not proof.note:
        weights = int(grouped(wrapper.codes, wrapper.layer).long().abs().sum(dim=-1).max())
        greatest = max(_greatest_code(quantizer) for quantizer in quantizers)
        row["deviation"], row["rescale_deviation"] = proof.deviation, proof.rescale_deviation
        row["accumulator_bits"] = signed_bits(proof.low, proof.high)
        row["worst_case_bits"] = signed_bits(0, greatest * weights)
    return row


def _share_at_ends(wrapper: QuantizedLayer) -> float:
    """Of weight codes. Rows with bits of their own end where as many bits as they need do; a mid-rise grid, whose
    offset is half its scale, has one code more at its lower end."""
    codes = grouped(wrapper.codes, wrapper.layer).flatten(0, 1).cpu().numpy()
    high = 2 ** (row_widths(codes, wrapper.wbits).astype(np.int16).clip(1) - 1)[:, None] - 1
    midrise = wrapper.offset is not None and torch.equal(wrapper.offset, wrapper.scale / 2)
    return float(((codes >= high) | (codes <= -high - midrise)).mean())


def signed_bits(low: int, high: int) -> int:
    """Bits of the smallest two's complement integer that holds both, low ≤ 0 ≤ high.

    >>> signed_bits(-8, 7), signed_bits(-9, 7), signed_bits(0, 8)
    (4, 5, 5)
    """
    return 1 + max((-low - 1).bit_length() if low else 0, high.bit_length())


def _greatest_code(quantizer: InputQuantizer) -> int:
    return max(int(torch.as_tensor(end).abs().max()) for end in (quantizer.grid.low, quantizer.grid.high))


def _relative(values: Tensor, reference: Tensor) -> float:
    """Greatest difference, relative to the reference's greatest magnitude."""
    if not reference.numel():
        return 0.0
    difference, magnitude = (values.double() - reference).abs().max().item(), reference.abs().max().item()
    return difference / magnitude if magnitude else difference


def _agreement(outputs: list[tuple]) -> dict[str, float]:
    """How far the outputs with integers agree with the simulated ones, in batches of (simulated, with integers)."""
    if not all(isinstance(output, Tensor) for pair in outputs for output in pair):
        return {}
    simulated, integers = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    measured = {"deviation": _relative(integers, simulated)}
    if simulated.dim() == 2:
        measured["agreement"] = (integers.argmax(dim=1) == simulated.argmax(dim=1)).double().mean().item()
    return measured
