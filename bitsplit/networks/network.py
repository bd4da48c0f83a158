"""A named network: how it is built, the file of its weights with a checksum, and the preprocessing that it expects."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn

from bitsplit.data.images import Preprocessing
from bitsplit.networks.weights import load_weights, weights_digest


@dataclass
class Network:
    """A floating-point network and the file of its weights. It is built, and torchvision imported, where it first runs:
    that a record is there already is found out in half the time.

    variant: what sets it apart from others of its name, "" for nothing.
    """

    name: str
    build: Callable[[], nn.Module]
    path: Path
    preprocessing: Preprocessing
    variant: str = ""

    @property
    def weights(self) -> str:
        return self.path.name

    @property
    def identity(self) -> dict:
        """What the network is, as plain values for a record."""
        return {"name": self.name, "weights": self.weights, "sha256": self.sha256}

    @cached_property
    def sha256(self) -> str:
        """Of the weights' file; InputError where there is none."""
        return weights_digest(self.path)

    @cached_property
    def module(self) -> nn.Module:
        """The network in eval mode; InputError where the file holds no intact weights of this architecture."""
        return load_weights(self.name, self.build(), self.path)
