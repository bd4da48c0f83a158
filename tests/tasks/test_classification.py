"""Accuracy, agreement and signal-to-noise ratio against hand-made cases and plain numpy."""

import numpy as np
import pytest
import torch

from bitsplit.tasks.classification import metrics


def test_metrics_against_a_plain_loop():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(200, 12))
    logits = reference + 0.8 * rng.normal(size=(200, 12))
    labels = rng.integers(0, 12, 200)
    top1 = top5 = agree = 0
    for row, ref, label in zip(logits, reference, labels, strict=True):
        order = sorted(range(12), key=lambda c: -row[c])
        top1 += order[0] == label
        top5 += label in order[:5]
        agree += order[0] == int(np.argmax(ref))
    found = metrics(torch.tensor(logits), torch.tensor(labels), torch.tensor(reference), skipped=3)
    assert found["top1"] == top1 / 2 and found["top5"] == top5 / 2 and found["agreement"] == agree / 2
    snr = 10 * np.log10((reference**2).sum() / ((logits - reference) ** 2).sum())
    assert found["logits_snr_db"] == pytest.approx(snr, abs=1e-3)
    assert (found["images"], found["skipped"]) == (200, 3)


def test_unlabelled_and_identical():
    logits = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    found = metrics(logits, torch.full((10,), -1), logits, skipped=0)
    assert found["top1"] is None and found["top5"] is None
    assert found["agreement"] == 100 and found["logits_snr_db"] is None
