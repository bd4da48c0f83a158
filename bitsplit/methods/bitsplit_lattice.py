"""Bit-split's objective on its grid, with the weights that the lattice search finds (METHODS, section 7)."""

from dataclasses import dataclass
from typing import ClassVar

from bitsplit.methods.bitsplit import BitSplit


@dataclass(frozen=True)
class BitSplitLattice(BitSplit):
    """Bit-split with its best solver in the place of the planes; at most `sweeps` rounds of descent a candidate."""

    algorithm: ClassVar[str] = "lattice"
