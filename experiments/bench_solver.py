"""How fast and how good the solver is, as ratios measured in one run, for layers of ResNet-18/50 and VGG-16.

Command:  python experiments/bench_solver.py [--bits 4] [--algorithms planes integers gptq lattice]
Data:     none; random correlated patches behind a ReLU, 12,000 a layer
Expected: 15 minutes on 2 cores; writes results/bench/solver.md and .csv
"""

import sys

import pandas
import torch
from measure import publish, seconds_of
from published import published_gptq, published_gptq_objective, published_seconds
from script import in_one_line, parser_of
from torch import Tensor
from tqdm import tqdm

from bitsplit.grid import Grid
from bitsplit.solver.bitsplit import ALGORITHMS, solve

# Output channels × inputs: 3×3 convolutions of ResNet-18 and VGG-16, and ResNet-50's 1×1 ones.
SHAPES = [(64, 576), (128, 1152), (256, 2304), (512, 4608), (64, 256), (256, 64), (512, 128), (2048, 512), (512, 2048)]
PATCHES = 12_000


def random_problem(rows: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Weights (M, N) and patches (K, N) of low-rank signals and noise behind a ReLU."""
    random = torch.Generator().manual_seed(0)
    mixing = torch.randn(inputs // 4, inputs, generator=random)
    patches = torch.randn(PATCHES, inputs // 4, generator=random) @ mixing
    patches += torch.randn(PATCHES, inputs, generator=random) * mixing.norm(dim=0)
    return torch.randn(rows, inputs, generator=random) / inputs**0.5, patches.relu_()


def measure_layer(rows: int, inputs: int, bits: int, algorithms: list[str]) -> dict:
    """One row of the table. "GPTQ" is the published form, "gptq" the solver's algorithm."""
    weight, patches = random_problem(rows, inputs)
    gram = patches.T @ patches / len(patches)
    cross = weight @ gram
    energy = (cross.double() * weight.double()).sum()
    published = published_seconds(weight, patches, bits)
    grouped_scale = Grid(bits).scale_by_max(weight)[None]
    gptq_seconds = seconds_of(lambda: published_gptq(gram[None], weight[None], bits, grouped_scale))
    product_seconds = seconds_of(lambda: weight @ gram)
    row = {"layer": f"{rows}×{inputs}", "published, s": published}
    errors = {"GPTQ": published_gptq_objective(gram[None], cross[None], weight[None], bits).sum() + energy}
    for algorithm in algorithms:
        seconds = seconds_of(lambda name=algorithm: solve(gram, cross, bits, weight, name))
        errors[algorithm] = solve(gram, cross, bits, weight, algorithm).objective.sum() + energy
        row |= {
            f"{algorithm}, s": seconds,
            f"published / {algorithm}": published / seconds,
            f"{algorithm} / GPTQ": seconds / gptq_seconds,
            f"{algorithm} / product": seconds / product_seconds,
        }
    reference = errors["planes"] if "planes" in errors else errors[algorithms[0]]
    return row | {f"error of {name} / planes": (error / reference).item() for name, error in errors.items()}


@in_one_line
def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--bits", type=int, default=4, help="bit-width of the weights (default: 4)")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS), help="(default: all)")
    arguments = parser.parse_args()
    shapes = tqdm(SHAPES, "layers", disable=None)
    table = pandas.DataFrame([measure_layer(*shape, arguments.bits, arguments.algorithms) for shape in shapes])
    publish("solver", __doc__, table, table.to_markdown(index=False, floatfmt=".3g"))


if __name__ == "__main__":
    sys.exit(main())
