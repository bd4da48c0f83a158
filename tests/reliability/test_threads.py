"""What the number of threads changes: the rounding of sums, and with it as many codes as noise of that size does."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, environment
from problems import problem, relu_layer

from bitsplit.report import record
from bitsplit.solver.bitsplit import ALGORITHMS, solve

_SOLVE = """
import sys, torch
from bitsplit.solver.bitsplit import ALGORITHMS, solve
layer, target = sys.argv[1:]
given = torch.load(layer)
torch.save({algorithm: solve(*given, algorithm=algorithm).codes for algorithm in ALGORITHMS}, target)
"""


def layer() -> tuple[torch.Tensor, torch.Tensor, int, torch.Tensor]:
    gram, cross, weight = problem(*relu_layer(0, 600, 24)[:2], dtype=torch.float32)
    return gram, cross, 4, weight


def error(codes: torch.Tensor) -> float:
    """The output error of codes, each row with its best scale, as a part of the output."""
    gram, cross, _, weight = (value.double() if isinstance(value, torch.Tensor) else value for value in layer())
    codes = codes.double()
    energy, reached = (weight * cross).sum(dim=-1), (codes * cross).sum(dim=-1)
    return (1 - (reached.square() / ((codes @ gram) * codes).sum(dim=-1)).sum() / energy.sum()).item()


@pytest.fixture(scope="module")
def codes_by_threads(tmp_path_factory) -> list[dict[str, torch.Tensor]]:
    """Each algorithm's codes on one thread and on two."""
    folder, found = tmp_path_factory.mktemp("threads"), []
    torch.save(layer(), folder / "layer")
    for threads in ("1", "2"):
        line = [sys.executable, "-c", _SOLVE, str(folder / "layer"), str(folder / threads)]
        variables = environment() | {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}
        subprocess.run(line, cwd=ROOT, env=variables, check=True, timeout=240)
        found.append(torch.load(folder / threads))
    return found


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_threads_change_no_more_codes_than_rounding_does(codes_by_threads, algorithm):
    codes = [found[algorithm] for found in codes_by_threads]
    changed = (codes[0] != codes[1]).float().mean().item()
    gram, cross, bits, weight = layer()
    by_noise = []
    for seed in range(3):
        noise = torch.randn(gram.shape, generator=torch.Generator().manual_seed(seed)) * 1e-7
        noisy = gram * (1 + (noise + noise.mT) / 2)
        by_noise.append((solve(noisy, cross, bits, weight, algorithm).codes != codes[0]).float().mean().item())
    assert changed <= 2 * max(by_noise) + 1e-3
    assert np.isclose(error(codes[0]), error(codes[1]), rtol=0.01)


_FORK = """
import multiprocessing, torch, bitsplit
torch.set_num_threads(1)
network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3)).eval()
images = torch.rand(8, 3, 9, 9)
quantized = bitsplit.quantize(network, [images], bits={"2": (4, 4)})
with torch.no_grad():
    expected = quantized(images)

def child():
    with torch.no_grad():
        assert torch.equal(quantized(images), expected)
    for what in (lambda: bitsplit.quantize(network, [images]), lambda: bitsplit.solve(torch.eye(3), torch.eye(3), 4)):
        try:
            what()
        except bitsplit.InputError as error:
            assert "spawn" in str(error)
            print("refused", flush=True)

process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join()
print(process.exitcode, torch.get_num_threads())
"""


def test_forked_processes_run_quantized_networks_and_torch_keeps_its_threads():
    variables = environment() | {"OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2"}
    line = [sys.executable, "-c", _FORK]
    done = subprocess.run(line, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["refused", "refused", "0", "1"], done.stderr


def test_a_record_says_how_many_threads_computed_it(command, tmp_path):
    done = command("data=glyphs", "data.validation_images=200", *SMALL, "method=tflite")
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "results").rglob("*.json")
    assert record.read(path)["machine"]["threads"] == {"torch": 1, "numba": 1}
