"""What no layer may read and no network give: NaN and infinity."""

import math

from torch import Tensor
from torch.utils._pytree import tree_leaves

from bitsplit.errors import InputError


def finite_range(name: str, tensor: Tensor) -> tuple[float, float]:
    """Least and greatest value that a layer reads; InputError where it reads NaN or infinity."""
    # In the order in which the values lie in memory; in another one, channels last takes fifty times as long.
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    low, high = (bound.item() for bound in tensor.permute(order).aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"layer {name} receives NaN or infinity; check the weights and the calibration images")
    return low, high


def check_output(output: object) -> None:
    """InputError where a tensor that the network gives holds NaN or infinity."""
    if not all(leaf.isfinite().all() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)):
        raise InputError("the network's output holds NaN or infinity on the calibration images")
