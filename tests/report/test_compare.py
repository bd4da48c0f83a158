"""Two networks on the same images: the interval and McNemar's test against exact distributions, and the command."""

import itertools

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from records import answered, make_run, report, write_runs
from scipy.stats import binom, multinomial, norm

from bitsplit.answers import packed_answers, right_answers
from bitsplit.report.paired import paired_difference


def test_the_interval_is_that_of_the_exact_distribution():
    """Of all outcomes of so few images, each with its probability: the difference's own standard deviation."""
    ours = np.array([1, 1, 1, 1, 1, 1, 0, 0, 1, 0, 1, 1], bool)
    theirs = np.array([1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1], bool)
    n, shares = len(ours), [3 / 12, 1 / 12, 8 / 12]  # right by ours alone, by theirs alone, by both or none
    outcomes = [(b, c, n - b - c) for b, c in itertools.product(range(n + 1), repeat=2) if b + c <= n]
    weights = np.array([multinomial.pmf(outcome, n, shares) for outcome in outcomes])
    differences = np.array([100 * (b - c) / n for b, c, _ in outcomes])
    mean = weights @ differences
    deviation = np.sqrt(weights @ (differences - mean) ** 2)
    difference = paired_difference(ours, theirs)
    assert (difference.points, difference.interval) == pytest.approx((mean, norm.ppf(0.975) * deviation))


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (9, 1), (5, 5), (30, 55)])
def test_p_is_the_share_of_coin_throws_as_far_from_even(b, c):
    first = np.array([True] * b + [False] * c + [True] * 7)
    second = np.array([False] * b + [True] * c + [True] * 7)
    throws = np.arange(b + c + 1)
    likely = binom.pmf(throws, b + c, 0.5)
    expected = likely[abs(throws - (b + c) / 2) >= abs(b - (b + c) / 2)].sum()
    assert paired_difference(first, second).p == pytest.approx(expected)


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_answers_come_back(right):
    assert right_answers(packed_answers(np.array(right)), len(right)).tolist() == right


def test_two_records_are_compared_image_by_image(tmp_path):
    reference = np.array([True] * 90 + [False] * 10)
    better, worse = reference.copy(), reference.copy()
    better[[0, 95]], worse[:20] = [False, True], False
    write_runs(tmp_path, answered(better, reference), answered(worse, reference, method="tflite"))
    files = sorted(map(str, tmp_path.rglob("*.json")))
    done = report(tmp_path, "compare", *files)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "glyphs validation, 10,000 images",
        "  ResNet-18 Bit-split W4A4: top-1 90.00",
        "  ResNet-18 TF-Lite W4A4: top-1 70.00",
        "  ResNet-18 in floating point: top-1 90.00",
        "ResNet-18 Bit-split W4A4 minus ResNet-18 TF-Lite W4A4: +20.00 ± 7.84 points, above "
        "(right alone 20 and 0, p = 1.9e-06)",
        "ResNet-18 Bit-split W4A4 minus ResNet-18 in floating point: +0.00 ± 2.77 points, level "
        "(right alone 1 and 1, p = 1)",
        "ResNet-18 TF-Lite W4A4 minus ResNet-18 in floating point: -20.00 ± 7.84 points, below "
        "(right alone 0 and 20, p = 1.9e-06)",
    ]


def test_the_same_cell_from_two_folders_and_networks_of_other_weights(tmp_path):
    reference = np.array([True] * 90 + [False] * 10)
    worse, lower = reference.copy(), reference.copy()
    worse[:20], lower[:30] = False, False
    runs = [answered(reference, reference), answered(worse, reference), answered(worse, lower)]
    runs[2]["weights"] = runs[2]["weights"] | {"sha256": "f" * 64}
    for place, run in zip("abc", runs, strict=True):
        write_runs(tmp_path / place, run)
    a, b, c = (str(path) for path in sorted(tmp_path.rglob("*.json")))
    done = report(tmp_path, "compare", a, b)
    assert f"Bit-split W4A4 ({a}) minus ResNet-18 Bit-split W4A4 ({b}): +20.00 ± 7.84 points, above" in done.stdout
    assert f"  ResNet-18 Bit-split W4A4 ({a}): top-1 90.00" in done.stdout
    done = report(tmp_path, "compare", a, c)
    own = runs[0]["weights"]["sha256"][:8]
    assert f"({a}) minus ResNet-18 in floating point, weights {own}: +0.00" in done.stdout
    assert f"({c}) minus ResNet-18 in floating point, weights ffffffff: +10.00" in done.stdout


def test_other_images_of_the_same_number_are_not_compared(tmp_path):
    right = np.array([True, False])
    runs = [answered(right, right), answered(right, right, method="tflite")]
    runs[1]["config"]["data"] = runs[1]["config"]["data"] | {"files": "0" * 64}
    write_runs(tmp_path, *runs)
    done = report(tmp_path, "compare", *sorted(map(str, tmp_path.rglob("*.json"))))
    assert done.returncode == 2 and "of other files or otherwise prepared" in done.stderr


def test_what_cannot_be_compared_is_one_line(tmp_path):
    right = np.array([True, False])
    scenes = make_run(method="tflite", data="coco")
    scenes["metrics"]["quantized"] |= {"bbox_ap": 30.0, "bbox_ap_without": []}
    runs = answered(right, right), answered(right, right, data="imagenet"), make_run(method="aciq"), scenes
    glyphs, imagenet, bare, few = map(str, write_runs(tmp_path, *runs))
    cases = {
        (): "takes two records",
        (glyphs, imagenet): "of different images",
        (glyphs, bare): "does not say which images were right",
        (few, few): "is of fewer scenes than an interval needs",
        (glyphs, str(ROOT / "README.md")): "is no record",
    }
    for arguments, message in cases.items():
        done = report(tmp_path, "compare", *arguments)
        assert done.returncode == 2 and message in done.stderr.splitlines()[-1], done.stderr
