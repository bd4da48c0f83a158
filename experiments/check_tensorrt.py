"""Compares the threshold of method `tensorrt` with that of NVIDIA's own tool, and traces what sets the two apart.

Command:  pip install -e '.[modelopt]', then python experiments/check_tensorrt.py
Data:     none; five distributions of 100,000 values
Expected: one to two minutes; the bins, of 2048, that each keeps at 128 levels (signed) and 256 (unsigned)

Both follow Migacz's description: outliers go to the last bin of P, Q is made of the clipped histogram alone and spread
over the bins that are not empty. Where modelopt goes beyond it, ours is computed again with its choice:
first bin:  modelopt overwrites the count nearest to zero with the next one; the description keeps every count
groups:     where the bins are no multiple of the levels, the description is silent; ours rounds the edges of the groups
            down, modelopt up
The rest does not show here: modelopt's threshold is the edge behind bin i, Migacz's half a bin more; of equal
divergences it takes the last, ours the first; it starts at 128 bins unless it is told another number.
"""

import sys
from importlib.util import find_spec

import numpy as np
import pandas
import scipy.stats
import torch
from script import in_one_line, parser_of

from bitsplit.methods.tensorrt import least_divergent

BINS = 2048


def distributions(count: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    outliers = random.uniform(10, 20, count // 10_000)
    return {
        "normal": random.standard_normal(count),
        "Laplace": random.laplace(size=count),
        "ReLU of Laplace, with outliers": np.concatenate([random.laplace(size=count).clip(0), outliers]),
        "ReLU of normal": random.standard_normal(count).clip(0),
        "Student's t, 3 degrees": random.standard_t(3, count),
    }


def modelopt_bins(values: torch.Tensor, levels: int) -> int:
    """Bins that modelopt's entropy calibration keeps; it hands out their upper edge."""
    from modelopt.torch.quantization.calib import HistogramCalibrator

    calibrator = HistogramCalibrator(8, None, unsigned=levels == 256, num_bins=BINS)
    calibrator.collect(values)
    threshold = calibrator.compute_amax("entropy", stride=1, start_bin=levels)
    return round((threshold / values.abs().max() * BINS).item())


def traced_bins(counts: np.ndarray, levels: int, first_bin: bool, groups: bool) -> int:
    """Bins with the least divergence, with modelopt's first bin, its groups, or both."""
    counts = counts.copy()
    if first_bin:
        counts[0] = counts[1]
    divergences = {}
    for i in range(levels, len(counts) + 1):
        edges = np.arange(levels + 1) * i
        edges = -(-edges // levels) if groups else edges // levels
        p, occupied = counts[:i].copy(), counts[:i] > 0
        p[-1] += counts[i:].sum()
        spread = np.add.reduceat(counts[:i], edges[:-1]) / np.maximum(
            np.add.reduceat(occupied, edges[:-1], dtype=int), 1
        )
        q = np.repeat(spread, np.diff(edges)) * occupied
        divergences[i] = scipy.stats.entropy(p, q)  # normalises both
    return min(divergences, key=divergences.get)


def row_of(name: str, values: np.ndarray, levels: int) -> dict:
    tensor = torch.tensor(values, dtype=torch.float32)
    magnitude = tensor.abs()
    counts = torch.histc(magnitude[magnitude > 0], BINS, 0, magnitude.max().item()).double().numpy()
    traced = {
        "with its first bin": traced_bins(counts, levels, True, False),
        "with its groups": traced_bins(counts, levels, False, True),
        "with both": traced_bins(counts, levels, True, True),
    }
    ours, theirs = least_divergent(counts, levels), modelopt_bins(tensor, levels)
    return {"values": name, "levels": levels, "ours": ours, **traced, "modelopt": theirs}


@in_one_line
def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--values", type=int, default=100_000, help="of each distribution (default: 100000)")
    arguments = parser.parse_args()
    if find_spec("modelopt") is None:
        sys.exit("NVIDIA's tool is missing: pip install 'bitsplit[modelopt]'")
    rows = [
        row_of(name, values, levels)
        for levels in (128, 256)
        for name, values in distributions(arguments.values).items()
        if levels == 128 or values.min() >= 0
    ]
    table = pandas.DataFrame(rows)
    print(table.to_markdown(index=False))
    same = (table["with both"] == table["modelopt"]).sum()
    print(f"\nWith both of its choices ours keeps modelopt's bins in {same} of {len(table)} cases.")


if __name__ == "__main__":
    sys.exit(main())
