"""The solver on a GPU, by Triton's kernels and by plain torch, against the compiled loops on the CPU.

Command:  python experiments/bench_loops.py [--bits 4] [--algorithms planes lattice]
Data:     none; random correlated patches behind a ReLU, 12,000 a layer
Expected: 3 minutes on a GPU; writes results/bench/loops_cuda.md and .csv
"""

import sys

import pandas
import torch
from bench_solver import SHAPES, random_problem
from measure import publish, seconds_of, seconds_once
from script import parser_of
from torch import Tensor
from tqdm import tqdm

from bitsplit.solver import plain
from bitsplit.solver.bitsplit import ALGORITHMS, ROUNDS, solve

GPU = torch.device("cuda")
PLAIN_INPUTS = 1200  # a launch for every coordinate: layers of more inputs take plain torch minutes


def measure_layer(rows: int, inputs: int, bits: int, algorithm: str) -> dict:
    weight, patches = random_problem(rows, inputs)
    gram = (patches.to(GPU).T @ patches.to(GPU) / len(patches)).cpu()
    problem = gram, weight @ gram, weight
    energy = (problem[1].double() * weight.double()).sum()
    moved = [tensor.to(GPU) for tensor in problem]
    solutions: dict[str, Tensor] = {}

    def solve_on(name: str, gram: Tensor, cross: Tensor, weight: Tensor) -> None:
        solutions[name] = solve(gram, cross, bits, weight, algorithm).objective.sum().cpu()

    cpu = seconds_of(lambda: solve_on("cpu", *problem))
    kernels = seconds_of(lambda: solve_on("gpu", *moved), GPU)
    row = {"layer": f"{rows}×{inputs}", "algorithm": algorithm, "CPU, s": cpu, "kernels, s": kernels}
    row |= {"CPU / kernels": cpu / kernels}
    if inputs <= PLAIN_INPUTS:
        groups = [tensor.unsqueeze(0) for tensor in moved]
        seconds = seconds_once(lambda: ALGORITHMS[algorithm](*groups, bits, ROUNDS, plain), GPU)
        row |= {"plain torch / kernels": seconds / kernels}
    errors = {name: (energy + objective).item() for name, objective in solutions.items()}
    return row | {"error on the GPU / on the CPU": errors["gpu"] / errors["cpu"]}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--bits", type=int, default=4, help="bit-width of the weights (default: 4)")
    chosen = ["planes", "lattice"]
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=chosen, help=f"(default: {chosen})")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_loops needs a GPU, which torch does not find here", file=sys.stderr)
        sys.exit(2)
    jobs = [(*shape, arguments.bits, name) for name in arguments.algorithms for shape in SHAPES]
    table = pandas.DataFrame([measure_layer(*job) for job in tqdm(jobs, "layers", disable=None)])
    title = f"{__doc__.splitlines()[0]}\n\nGPU: {torch.cuda.get_device_name()}."
    publish("loops_cuda", title, table, table.to_markdown(index=False, floatfmt=".3g"))


if __name__ == "__main__":
    main()
