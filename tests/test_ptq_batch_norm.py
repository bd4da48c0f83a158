"""Batch-norm in `bitsplit.quantize`: refitted by its mode, and as it is while activations are sampled."""

import dataclasses

import pytest
import torch
from small_networks import BATCHES, SMALL
from torch import nn

import bitsplit
from bitsplit.settings import BatchNorm, Settings


@pytest.mark.parametrize("mode", ["reestimate", "shift", "none", "auto"])
def test_batch_norm_modes(network, mode):
    settings = Settings(calibration=SMALL.calibration, batch_norm=BatchNorm(mode=mode))
    quantized = bitsplit.quantize(network, BATCHES, 3, 3, settings=settings)
    moved = not torch.equal(quantized.main[4].running_mean, network.main[4].running_mean)
    assert moved == (mode != "none") and quantized.main[4].momentum == 0.1


@pytest.mark.parametrize("mode", ["reestimate", "shift", "none"])
def test_activations_are_sampled_with_batch_norm_as_it_will_be(mode):
    """By each batch's own statistics where the running ones are refitted at the end, else by the running ones."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    network[1].running_var.fill_(100.0)
    settings = dataclasses.replace(SMALL, batch_norm=BatchNorm(mode=mode))
    quantized = bitsplit.quantize(network, BATCHES, 8, 4, "tflite", {"3": (8, 4)}, settings=settings)
    with torch.no_grad():
        outputs = [quantized[0](batch) for batch in BATCHES]
    if mode == "none":
        read = [network[1](output) for output in outputs]
    else:
        read = [torch.nn.functional.batch_norm(output, None, None, training=True) for output in outputs]
    assert quantized[3].input_quantizer.scale.item() == pytest.approx(torch.cat(read).max().item() / 15, rel=1e-4)
