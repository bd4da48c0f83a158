"""Bit-split's objective on its grid, with the weights that the lattice search finds (`solver/lattice.py`)."""

from dataclasses import dataclass
from typing import ClassVar

from bitsplit.methods.bitsplit import BitSplit


@dataclass(frozen=True)
class BitSplitLattice(BitSplit):
    """Bit-split with its most accurate solver instead of the planes; at most `rounds` rounds of descent a candidate."""

    algorithm: ClassVar[str] = "lattice"
