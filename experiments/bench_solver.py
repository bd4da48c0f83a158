"""How fast and how good the solver is, as ratios measured in one run, for layers of ResNet-18/50 and VGG-16.

Command:  python experiments/bench_solver.py [--bits 4] [--algorithms planes integers lattice]
Data:     none; random correlated patches behind a ReLU, 12,000 a layer
Expected: 15 minutes on 2 cores; writes results/bench/solver.md and .csv
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas
import torch
from estimate_cost import seconds_of
from torch import Tensor
from tqdm import tqdm

from bitsplit import record
from bitsplit.grid import Grid
from bitsplit.solver import ALGORITHMS, objective, optimal_scale, solve

RESULTS = Path(__file__).resolve().parents[1] / "results" / "bench"
# Output channels × inputs: 3×3 convolutions of ResNet-18 and VGG-16, and ResNet-50's 1×1 ones.
SHAPES = [(64, 576), (128, 1152), (256, 2304), (512, 4608), (64, 256), (256, 64), (512, 128), (2048, 512), (512, 2048)]
PATCHES = 12_000
ROUNDS = 100  # of the published code
_TIMED_ROUNDS = 1  # of those; the rest take as long, for the published code does the same work in each


def problem(rows: int, inputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights (M, N) and patches (K, N) of low-rank signals and noise behind a ReLU."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs // 4, inputs, generator=random)
    patches = torch.randn(PATCHES, inputs // 4, generator=random) @ mixing
    patches += torch.randn(PATCHES, inputs, generator=random) * mixing.norm(dim=0)
    return torch.randn(rows, inputs, generator=random) / inputs**0.5, patches.relu_()


def published_round(planes: list[np.ndarray], x: np.ndarray, y: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """One round of bit-split as the published code organises it, in place on planes (M, N); returns the scale (M,).

    Outputs Y (M, K) and patches X (N, K) are kept; each plane costs a product of the other planes with X and walks
    over the columns with its own output at hand (METHODS, section 2).
    """
    codes = sum(2**m * plane for m, plane in enumerate(planes))
    output = codes @ x
    scale = (output * y).sum(axis=1) / (output * output).sum(axis=1)
    for m in reversed(range(len(planes))):
        others = sum(2**i * plane for i, plane in enumerate(planes) if i != m)
        unit = scale * 2**m
        correlation = (y - scale[:, None] * (others @ x)) @ x.T  # the product K×N×M
        for n in range(len(x)):
            rest = planes[m] @ gram[n] - gram[n, n] * planes[m][:, n]
            free = (correlation[:, n] - unit * rest) / (unit * gram[n, n])
            planes[m][:, n] = np.clip(np.rint(free), -1, 1)
    return scale


def published_seconds(weight: Tensor, patches: Tensor, bits: int) -> float:
    """Seconds of the published code's 100 rounds on (X, Y), from the few that are timed; its start is not counted."""
    x, w = np.ascontiguousarray(patches.numpy().T), weight.numpy()
    grid = Grid(bits)
    codes = grid.quantize(weight, grid.scale_by_alternation(weight).unsqueeze(-1)).numpy()
    planes = [np.sign(codes) * (np.abs(codes).astype(int) >> m & 1).astype(np.float32) for m in range(bits - 1)]
    y, gram = w @ x, x @ x.T
    start = time.perf_counter()
    for _ in range(_TIMED_ROUNDS):
        published_round(planes, x, y, gram)
    return (time.perf_counter() - start) / _TIMED_ROUNDS * ROUNDS


def gptq(gram: Tensor, weight: Tensor, bits: int, scale: Tensor, block: int = 128, damping: float = 0.01) -> Tensor:
    """Codes (G, M, N) of GPTQ as it is published: column by column, lazy updates block by block, for all groups.

    Frantar et al., "GPTQ", ICLR 2023, Algorithm 1, on a grid that is given.
    """
    grid, weight, inputs = Grid(bits), weight.clone(), gram.shape[-1]
    damped = gram.clone()
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1, keepdim=True)
    damped.diagonal(dim1=-2, dim2=-1).add_(damping * mean.where(mean > 0, 1))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    feedback = torch.linalg.cholesky(inverse, upper=True)
    codes = torch.empty_like(weight)
    for first in range(0, inputs, block):
        last = min(first + block, inputs)
        part, errors = weight[..., first:last].clone(), torch.empty_like(weight[..., first:last])
        inside = feedback[..., first:last, first:last]
        for n in range(last - first):
            column = part[..., n]
            codes[..., first + n] = grid.quantize(column, scale)
            error = (column - codes[..., first + n] * scale) / inside[..., n, n].unsqueeze(-1)
            part[..., n:] -= error.unsqueeze(-1) * inside[..., n, n:].unsqueeze(-2)
            errors[..., n] = error
        weight[..., last:] -= errors @ feedback[..., first:last, last:]
    return codes


def gptq_objective(gram: Tensor, cross: Tensor, weight: Tensor, bits: int) -> Tensor:
    """q-part of f (G, M) of the GPTQ-style solve: the grid of the largest weight, then the optimal scale."""
    scale = Grid(bits).scale_by_max(weight)
    codes = gptq(gram, weight, bits, scale)
    return objective(codes, optimal_scale(codes, gram, cross, scale), gram, cross)


def measured(rows: int, inputs: int, bits: int, algorithms: list[str]) -> dict:
    weight, patches = problem(rows, inputs)
    gram = patches.T @ patches / len(patches)
    cross = weight @ gram
    energy = (cross.double() * weight.double()).sum()
    published = published_seconds(weight, patches, bits)
    row = {"layer": f"{rows}×{inputs}", "published, s": published}
    error = {"gptq": gptq_objective(gram[None], cross[None], weight[None], bits).sum() + energy}
    times = {
        "gptq": seconds_of(lambda: gptq(gram[None], weight[None], bits, Grid(bits).scale_by_max(weight)[None])),
        "product": seconds_of(lambda: weight @ gram),
    }
    for algorithm in algorithms:
        times[algorithm] = seconds_of(lambda name=algorithm: solve(gram, cross, bits, weight, name))
        error[algorithm] = solve(gram, cross, bits, weight, algorithm).objective.sum() + energy
    for algorithm in algorithms:
        row |= {
            f"{algorithm}, s": times[algorithm],
            f"published / {algorithm}": published / times[algorithm],
            f"{algorithm} / GPTQ": times[algorithm] / times["gptq"],
            f"{algorithm} / product": times[algorithm] / times["product"],
        }
    reference = error["planes"] if "planes" in error else error[algorithms[0]]
    return row | {f"error of {name} / planes": (value / reference).item() for name, value in error.items()}


def publish(name: str, title: str, table: pandas.DataFrame, text: str) -> None:
    """Prints `text` and writes results/bench/`name`.md, with the machine and versions, and all of `table` as CSV."""
    print(text)
    record.write_text(RESULTS / f"{name}.csv", table.to_csv(index=False))
    provenance = json.dumps(record.provenance(), ensure_ascii=False)
    record.write_text(RESULTS / f"{name}.md", f"{title.splitlines()[0]}\n\n{text}\n\n`{provenance}`\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=4, help="bit-width of the weights (default: 4)")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS), help="(default: all)")
    arguments = parser.parse_args()
    shapes = tqdm(SHAPES, "layers", disable=None)
    table = pandas.DataFrame([measured(*shape, arguments.bits, arguments.algorithms) for shape in shapes])
    publish("solver", __doc__, table, table.to_markdown(index=False, floatfmt=".3g"))


if __name__ == "__main__":
    main()
