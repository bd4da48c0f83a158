"""Weights as rows: (G, M, N), G groups of M rows with N inputs each, whatever order a layer keeps them in.

A transposed convolution whose outputs do not overlap (kernel no larger than the stride) is a 1×1 convolution with a row
for each output channel and place in the kernel: its weight (C_in, C_out/G, kh, kw) is (G, C_out/G · kh · kw, C_in/G).
"""

from torch import Tensor, nn

WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def grouped(values: Tensor, layer: nn.Module) -> Tensor:
    """Values in the order of the layer's weight, as (G, M, N)."""
    groups = getattr(layer, "groups", 1)
    rows = values.reshape(groups, values.shape[0] // groups, -1)
    return rows.mT if isinstance(layer, nn.ConvTranspose2d) else rows


def ungrouped(values: Tensor, layer: nn.Module) -> Tensor:
    """The inverse of `grouped`; where the orders agree, values of the weight's own shape are taken as well."""
    return (values.mT if isinstance(layer, nn.ConvTranspose2d) else values).reshape(layer.weight.shape)


def grouped_weight(layer: nn.Module) -> Tensor:
    """The layer's weight as (G, M, N), detached."""
    return grouped(layer.weight.detach(), layer).contiguous()


def trailing_dimensions(layer: nn.Module) -> int:
    """How many dimensions come behind the channels' in what the layer reads."""
    return 0 if isinstance(layer, nn.Linear) else 2


def by_column(values: Tensor, rows: Tensor) -> Tensor:
    """Values by input channel (C, ...) at the columns (G, 1, N) of rows (G, K, N), weights or patches; a scalar as it
    is."""
    if not values.dim():
        return values
    taps = rows.shape[0] * rows.shape[2] // values.numel()
    return values.flatten().repeat_interleave(taps).reshape(rows.shape[0], 1, -1)


def weighted_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Convolutions, transposed ones and linear layers by name, subclasses included.

    Modules that share a weight are one layer, or none where one divides it into other rows than another. A module whose
    weight is computed from other parameters (`torch.nn.utils.parametrizations`) is none.
    """
    sharing: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in network.named_modules():
        if isinstance(module, WEIGHTED) and "weight" in module._parameters:
            sharing.setdefault(id(module.weight), []).append((name, module))
    return dict(layers[0] for layers in sharing.values() if len({_row_order(module) for _, module in layers}) == 1)


def _row_order(layer: nn.Module) -> tuple[bool, int]:
    return isinstance(layer, nn.ConvTranspose2d), getattr(layer, "groups", 1)
