"""Bit-split-plus with weights on a mid-rise grid: all 2^M values α(k + ½) that M bits have, and no zero among them."""

from dataclasses import dataclass
from typing import ClassVar

from bitsplit.methods.bitsplit_plus import BitSplitPlus


@dataclass(frozen=True)
class BitSplitPlusMidrise(BitSplitPlus):
    """Bit-split-plus with four values instead of three at 2 bits, and eight instead of seven at 3.

    A layer's output is α (Σ k x + ½ Σ x): beside the integer product it costs the sum of what each output reads.
    """

    midrise: ClassVar[bool] = True
