"""What quantizing a whole network at 224×224 costs, in units of one floating-point pass over its calibration pictures.

Command:  python experiments/bench_quantize.py [resnet18 …] [--methods bitsplit bitsplit_lattice] [--pictures 640]
Data:     none; random pictures and weights, with batch-norm statistics of those pictures, as a trained network has
Expected: 5 minutes for resnet18 on 2 cores; writes results/bench/quantize_640.md and .csv, named by the pictures
"""

import argparse
import time

import pandas
import torch
from bench_solver import publish
from estimate_cost import seconds_of
from torch import Tensor, nn

from bitsplit import methods, ptq, record
from bitsplit.config import BatchNorm, Bits, Calibration, Settings
from bitsplit.layers import reestimate_batch_norm
from bitsplit.stats import pieces
from bitsplit.vision import torchvision

BATCH = 64


@torch.inference_mode()
def forward(network: nn.Module, batches: list[Tensor]) -> None:
    """One pass, in the pieces that calibration and evaluation use as well."""
    for piece, _ in pieces(batches):
        network(piece.contiguous(memory_format=torch.channels_last))


def measured(name: str, method: str, pictures: int) -> dict:
    torch.manual_seed(0)
    network = torchvision.models.get_model(name).eval().to(memory_format=torch.channels_last)
    batches = [torch.randn(BATCH, 3, 224, 224) for _ in range(pictures // BATCH)]
    reestimate_batch_norm(network, batches[:2], total=2, momentum=None)
    calibration = Calibration(gram_batches=len(batches), scale_batches=len(batches))
    settings = Settings(Bits(4, 4), calibration, BatchNorm(batches=len(batches)))
    baseline = seconds_of(lambda: forward(network, batches))
    start = time.perf_counter()
    quantized = ptq.quantize(network, batches, methods.named(method), settings)
    total = time.perf_counter() - start
    evaluation = seconds_of(lambda: forward(quantized, batches))
    phases = {f"{phase} / pass": seconds / baseline for phase, seconds in quantized.seconds.items()}
    return {
        "network": name,
        "method": method,
        "pass, s": baseline,
        **phases,
        "quantize / pass": total / baseline,
        "without batch-norm / pass": (total - quantized.seconds["batch_norm"]) / baseline,
        "evaluation, quantized / floating point": evaluation / baseline,
        "peak memory, MB": record.provenance()["peak_memory_mb"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["resnet18"], help="torchvision's names (default: resnet18)")
    parser.add_argument("--methods", nargs="+", choices=methods.names(), default=["bitsplit", "bitsplit_lattice"])
    parser.add_argument("--pictures", type=int, default=640, help="calibration pictures (default: 640)")
    arguments = parser.parse_args()
    jobs = [(name, method) for name in arguments.networks for method in arguments.methods]
    table = pandas.DataFrame([measured(*job, arguments.pictures) for job in jobs])
    # Digits before the table is turned: its columns then hold names and numbers.
    text = table.map(lambda value: f"{value:.4g}" if isinstance(value, float) else value).T
    publish(f"quantize_{arguments.pictures}", __doc__, table, text.to_markdown(headers=[], disable_numparse=True))


if __name__ == "__main__":
    main()
