"""The public verb `bitsplit.quantize`."""

import dataclasses
from collections.abc import Iterable

from torch import nn

from bitsplit import methods, ptq
from bitsplit.config import Settings
from bitsplit.methods import Method


def quantize(
    model: nn.Module,
    calibration: Iterable,
    wbits: int = 4,
    abits: int = 4,
    method: str | Method = "bitsplit",
    seed: int = 0,
    settings: Settings | None = None,
) -> nn.Module:
    """A quantized copy of `model`, without labels and without back-propagation; `model` itself is untouched.

    model: any module of Conv2d and Linear layers, subclasses included. calibration: an iterable of image batches
    (N, C, H, W), or of (images, anything); best a list or a DataLoader of about 1,000 images or more from the training
    set. wbits, abits: 2 to 8, or 32 for floating point. method: a name from `bitsplit.methods.names()`, or a method
    object with settings of its own. settings: everything else (bits of the first and last layer, calibration sizes,
    batch-norm re-estimation); its wbits, abits and seed give way to the arguments.

    Returns a module in eval mode. Its `report` is a pandas.DataFrame, one row a layer: name, shape, wbits, abits,
    signed (input range), relative_error (‖y − ŷ‖²/‖y‖² of the output through the weights), input_error
    (‖x − x̂‖²/‖x‖²) and a note on every weight left in floating point. `seconds` has the time of each phase.

    Raises InputError (a ValueError) for a bit-width or method there is not, empty calibration, or NaN in the network.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    >>> qmodel = quantize(model, [torch.rand(8, 3, 8, 8)], wbits=4, abits=4)
    >>> qmodel.report[["name", "wbits", "abits"]].values.tolist()
    [['0', 8, 32], ['2', 4, 4], ['4', 8, 8]]

    Settings of one's own, here the last layer at 4 bits too, and another method:

    >>> from bitsplit.config import Bits, Settings
    >>> settings = Settings(Bits(last_wbits=4, last_abits=4))
    >>> qmodel = quantize(model, [torch.rand(8, 3, 8, 8)], wbits=4, abits=4, method="tflite", settings=settings)
    >>> qmodel.report[["name", "wbits", "abits"]].values.tolist()
    [['0', 8, 32], ['2', 4, 4], ['4', 4, 4]]
    """
    settings = settings or Settings()
    bits = dataclasses.replace(settings.bits, wbits=wbits, abits=abits)
    settings = dataclasses.replace(settings, bits=bits, seed=seed)
    method = methods.named(method) if isinstance(method, str) else method
    return ptq.quantize(model, calibration, method, settings)
