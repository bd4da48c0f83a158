"""One quantized layer as named tensors and plain facts, and back.

`<layer>.weight_packed` (the codes, `bit_packing`), `.weight_scale` and perhaps `.weight_offset` by row,
`.weight_shape`, where rows have bits of their own `.weight_bits`; `.input_scale` and perhaps `.input_bits`, with the
number of the call behind it where there are several.
"""

import torch
from torch import Tensor, nn

from bitsplit.errors import InputError
from bitsplit.export.packed.bit_packing import pack_rows, packed_size, row_widths, unpack_rows
from bitsplit.grid import Grid
from bitsplit.layers.inputs import InputQuantizer
from bitsplit.layers.quantized import QuantizedLayer, put_input_quantizers, put_weights, wrap_layer
from bitsplit.layout import grouped
from bitsplit.settings import FLOAT_BITS, MOST_BITS, check_bits


class StoredTensors:
    """The tensors of a file, each to be taken once; ValueError for one that is missing or not what it must be."""

    def __init__(self, tensors: dict[str, Tensor], device: torch.device):
        self._tensors, self._device = dict(tensors), device

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def take(self, key: str, dtype: torch.dtype, *shapes: tuple[int, ...]) -> Tensor:
        """The tensor, of one of these shapes, on the network's device."""
        if key not in self._tensors:
            raise ValueError(f"{key} is missing")
        tensor = self._tensors.pop(key)
        if tensor.dtype != dtype or tuple(tensor.shape) not in [tuple(shape) for shape in shapes]:
            raise ValueError(f"{key} is {tensor.dtype} {tuple(tensor.shape)}, not {dtype} {tuple(shapes[0])}")
        return tensor.to(self._device)

    def take_finite(self, key: str, dtype: torch.dtype, *shapes: tuple[int, ...]) -> Tensor:
        """`take`, and ValueError for NaN and infinity as well."""
        tensor = self.take(key, dtype, *shapes)
        if not tensor.isfinite().all():
            raise ValueError(f"{key} holds NaN or infinity")
        return tensor

    def size(self, key: str) -> int:
        return self._tensors[key].numel() if key in self else 0

    def check_empty(self) -> None:
        if self._tensors:
            raise ValueError(f"{min(self._tensors)} is in it, which the network does not have")


def layer_facts(layer: QuantizedLayer) -> dict:
    """The bits of its weights and, call by call, what its input quantizers are beside their scales."""
    inputs = [
        {
            "bits": None if isinstance(quantizer.bits, Tensor) else quantizer.bits,
            "signed": quantizer.signed,
            "zero": quantizer.zero,
            "folded": quantizer.folded,
            "in_place": quantizer.in_place,
            "observed": quantizer.observed,
        }
        for quantizer in layer.input_quantizers
    ]
    return {"wbits": layer.wbits, "inputs": inputs}


def layer_tensors(prefix: str, layer: QuantizedLayer) -> dict[str, Tensor]:
    """Everything of the layer but the tensors of the floating-point one, under names that begin with `prefix`;
    InputError where its weight is no longer what its codes stand for."""
    tensors = {}
    if layer.codes is not None:
        if not layer.intact:
            raise InputError(f"{prefix}weight is no longer what its codes stand for; save what quantize has returned")
        rows = grouped(layer.codes, layer.layer).flatten(0, 1).cpu().numpy()
        widths = row_widths(rows, layer.wbits)
        tensors["weight_packed"] = torch.from_numpy(pack_rows(rows, widths))
        tensors["weight_scale"], tensors["weight_offset"] = layer.scale, layer.offset
        tensors["weight_shape"] = torch.tensor(layer.codes.shape)
        tensors["weight_bits"] = torch.from_numpy(widths) if (widths != layer.wbits).any() else None
    quantizers = layer.input_quantizers
    for ending, quantizer in zip(_endings(quantizers), quantizers, strict=True):
        tensors[f"input_scale{ending}"] = quantizer.scale.float()  # as it was measured
        tensors[f"input_bits{ending}"] = quantizer.bits if isinstance(quantizer.bits, Tensor) else None
    return {f"{prefix}{key}": tensor for key, tensor in tensors.items() if tensor is not None}


def packed_bytes(layer: QuantizedLayer) -> int:
    """The size of `layer_tensors`, without packing anything."""
    inputs = (tensor for quantizer in layer.input_quantizers for tensor in quantizer.buffers())
    size = sum(tensor.nbytes for tensor in (layer.scale, layer.offset, *inputs) if tensor is not None)
    if layer.codes is not None:
        rows = grouped(layer.codes, layer.layer).flatten(0, 1).cpu().numpy()
        widths = row_widths(rows, layer.wbits)
        size += packed_size(widths, rows.shape[1]) + 8 * layer.codes.dim()
        size += widths.nbytes if (widths != layer.wbits).any() else 0
    return size


def put_layer(network: nn.Module, prefix: str, layer: nn.Module, facts: dict, stored: StoredTensors) -> None:
    """Makes `layer` of the floating-point `network`, and those that share its weight, what `layer_facts` and
    `layer_tensors` have said; ValueError where that cannot be."""
    by_channel = _by_channel(layer)
    if facts["wbits"] == FLOAT_BITS:
        wrap_layer(network, layer)
    else:
        put_weights(network, layer, facts["wbits"], *_taken_weight(prefix, layer, facts["wbits"], stored))
    quantizers = []
    for ending, entry in zip(_endings(facts["inputs"]), facts["inputs"], strict=True):
        scale = stored.take_finite(f"{prefix}input_scale{ending}", torch.float32, (), by_channel)
        if entry["bits"] is None:
            bits = stored.take(f"{prefix}input_bits{ending}", layer.weight.dtype, by_channel)
            if not torch.isin(bits.cpu().float(), torch.arange(MOST_BITS + 1.0, device="cpu")).all():
                raise ValueError(f"{prefix}input_bits{ending} must be whole numbers up to {MOST_BITS}")
        else:
            bits = check_bits(f"{prefix}abits", entry["bits"], floating_point=False)
        grid, scale = Grid(bits, bool(entry["signed"]), int(entry["zero"])), scale.flatten() if scale.dim() else scale
        observed = entry["observed"] and tuple(map(float, entry["observed"]))
        ways = bool(entry["folded"]), bool(entry["in_place"]), observed
        quantizers.append(InputQuantizer(grid, scale, len(by_channel) - 1, *ways))
    if quantizers:
        put_input_quantizers(network, layer.weight, quantizers)


def _taken_weight(
    prefix: str, layer: nn.Module, wbits: int, stored: StoredTensors
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes (G, M, N), scale and offset (G, M) of the layer."""
    check_bits(f"{prefix}wbits", wbits, floating_point=False)
    weight = layer.weight
    groups, rows, columns = grouped(weight, layer).shape
    shape = stored.take(f"{prefix}weight_shape", torch.int64, (weight.dim(),))
    if shape.tolist() != list(weight.shape):
        raise ValueError(f"{prefix}weight_shape is {shape.tolist()}, not {list(weight.shape)}")
    widths = torch.full((groups * rows,), wbits, dtype=torch.uint8, device="cpu")
    if f"{prefix}weight_bits" in stored:
        widths = stored.take(f"{prefix}weight_bits", torch.uint8, (groups * rows,)).cpu()
        if (widths > MOST_BITS).any():
            raise ValueError(f"{prefix}weight_bits must be whole numbers up to {MOST_BITS}")
    key = f"{prefix}weight_packed"
    packed = stored.take(key, torch.uint8, (stored.size(key),))
    codes = torch.from_numpy(unpack_rows(packed.cpu().numpy(), widths.numpy(), columns))
    kind = (weight.dtype, (groups * rows,))
    scale, offset = stored.take_finite(f"{prefix}weight_scale", *kind).reshape(groups, rows), None
    if f"{prefix}weight_offset" in stored:
        offset = stored.take_finite(f"{prefix}weight_offset", *kind).reshape(groups, rows)
    return codes.reshape(groups, rows, columns).to(weight.device), scale, offset


def _endings(calls: list) -> list[str]:
    return [""] if len(calls) == 1 else [f".{number}" for number in range(len(calls))]


def _by_channel(layer: nn.Module) -> tuple[int, ...]:
    """The shape of numbers by channel of what the layer reads."""
    if isinstance(layer, nn.Linear):
        return (layer.weight.shape[1],)
    transposed = isinstance(layer, nn.ConvTranspose2d)
    return (layer.weight.shape[0] if transposed else layer.weight.shape[1] * layer.groups, 1, 1)
