"""Bit-split with error-compensated activation quantization (ECAQ; Wang et al., ICML 2020, Algorithm 1).

Scales by channel s_c are moved into the weights before these are quantized, w_c ← w_c · s_c / s, so that inference
needs one scale s a layer, and the weights are solved on the quantized inputs X̂: A = X̂X̂ᵀ, C = W X X̂ᵀ.
"""

from dataclasses import dataclass
from typing import ClassVar

from bitsplit.methods.bitsplit_per_channel import BitSplitPerChannel


@dataclass(frozen=True)
class BitSplitECAQ(BitSplitPerChannel):
    """Bit-split-per-channel whose weights hold the scales by channel and make up for the error of the activations.

    Weights that make up for all errors are least-squares estimates: their outputs vary less than the floating-point
    network's. Batch-norm re-estimated behind them would undo that, and enlarge what they have taken out.
    """

    batch_norm: ClassVar[str] = "none"
    order: ClassVar[str] = "sequential"
    folded: ClassVar[bool] = True
