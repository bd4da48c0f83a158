"""What a quantized network can say of itself."""

import functools

from torch import nn

from bitsplit.export.page.file import write_page
from bitsplit.export.summary import summarize


def attach_views(network: nn.Module) -> None:
    """Gives a quantized network its `summary()` and `to_html(path)`; a copy of the network, or one from a pickle, has
    its own."""
    network.summary = functools.partial(summarize, network)
    network.to_html = functools.partial(write_page, network)
