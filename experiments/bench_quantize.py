"""What quantizing a whole network at 224×224 costs, in units of one floating-point pass over its calibration images.

Command:  python experiments/bench_quantize.py [resnet18 …] [--methods bitsplit bitsplit_plus] [--devices cpu cuda]
Data:     none; random images and weights, with batch-norm statistics of those images, as a trained network has
Expected: 8 minutes for resnet18 on 2 cores; writes results/bench/quantize_640.md and .csv, named by the images and,
          but for the CPU alone, by the devices
"""

import itertools
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pandas
import torch
from measure import forward, keep, seconds_of, seconds_once
from script import in_one_line, parser_of
from torch import nn
from tqdm import tqdm

from bitsplit import methods, ptq
from bitsplit.layers.batch_norm import reestimate_batch_norm
from bitsplit.runs.provenance import provenance
from bitsplit.settings import BatchNorm, Bits, Calibration, Settings
from bitsplit.vision import torchvision

BATCH = 64


def warm_up(method: str, device: torch.device) -> None:
    """Quantizes a network of two layers, so that no timing holds the compilation of a loop or a library's start."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval().to(device)
    batches = [torch.randn(BATCH, 3, 16, 16, device=device)] * 2
    ptq.quantize(network, batches, method=method, settings=Settings(Bits(4, 4)))


def measure_quantize(name: str, method: str, where: str, images: int) -> dict:
    torch.manual_seed(0)
    device = torch.device(where)
    network = torchvision.models.get_model(name).eval().to(device, memory_format=torch.channels_last)
    batches = [torch.randn(BATCH, 3, 224, 224) for _ in range(images // BATCH)]
    batches = [batch.to(device, memory_format=torch.channels_last) for batch in batches]
    reestimate_batch_norm(network, batches[:2], total=2, momentum=None)
    calibration = Calibration(gram_batches=len(batches), scale_batches=len(batches), lockstep_batches=len(batches))
    settings = Settings(Bits(4, 4), calibration, BatchNorm(batches=len(batches)))
    warm_up(method, device)
    baseline = seconds_of(lambda: forward(network, batches), device)
    quantize = partial(ptq.quantize, network, batches, method=method, settings=settings)
    made = []
    total = seconds_once(lambda: made.append(quantize()), device)
    quantized = made.pop()
    evaluation = seconds_of(lambda: forward(quantized, batches), device)
    phases = {f"{phase} / pass": seconds / baseline for phase, seconds in quantized.seconds.items()}
    return {
        "network": name,
        "method": method,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "pass, s": baseline,
        **phases,
        "quantize, s": total,
        "quantize / pass": total / baseline,
        "without batch-norm / pass": (total - quantized.seconds["batch_norm"]) / baseline,
        "evaluation, quantized / floating point": evaluation / baseline,
        "evaluation, images/s": images / evaluation,
        "images in lock-step": getattr(quantized, "lockstep_images", None),
        "peak memory, MB": provenance()["peak_memory_mb"],
        **({"peak of the GPU, MB": torch.cuda.max_memory_allocated() / 2**20} if device.type == "cuda" else {}),
    }


@in_one_line
def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("networks", nargs="*", default=["resnet18"], help="torchvision's names (default: resnet18)")
    parser.add_argument("--methods", nargs="+", choices=methods.names(), default=["bitsplit", "bitsplit_lattice"])
    parser.add_argument("--images", type=int, default=640, help="calibration images (default: 640)")
    parser.add_argument("--devices", nargs="+", default=["cpu"], help="cpu (default), cuda, cuda:1, …")
    arguments = parser.parse_args()
    jobs = list(itertools.product(arguments.networks, arguments.methods, arguments.devices))
    others = "".join(f"_{device.replace(':', '')}" for device in arguments.devices if device != "cpu")
    rows = []
    # Each in a process of its own, whose peak of memory is then that of one job; kept as soon as it is measured.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for measured in tqdm([pool.submit(measure_quantize, *job, arguments.images) for job in jobs], "quantize"):
            rows.append(measured.result())
            table = pandas.DataFrame(rows)
            # Digits before the table is turned: its columns then hold names and numbers.
            digits = table.map(lambda value: f"{value:.4g}" if isinstance(value, float) else value).replace("nan", "–")
            text = digits.T.to_markdown(headers=[], disable_numparse=True)
            keep(f"quantize_{arguments.images}{others}", __doc__, table, text)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
