"""What quantizing a whole network at 224×224 costs, in units of one floating-point pass over its calibration images.

Command:  python experiments/bench_quantize.py [resnet18 …] [--methods bitsplit bitsplit_lattice] [--images 640]
Data:     none; random images and weights, with batch-norm statistics of those images, as a trained network has
Expected: 5 minutes for resnet18 on 2 cores; writes results/bench/quantize_640.md and .csv, named by the images
"""

import time

import pandas
import torch
from measure import forward, publish, seconds_of
from script import parser_of

from bitsplit import methods, ptq
from bitsplit.layers.batch_norm import reestimate_batch_norm
from bitsplit.runs.provenance import provenance
from bitsplit.settings import BatchNorm, Bits, Calibration, Settings
from bitsplit.vision import torchvision

BATCH = 64


def measure_quantize(name: str, method: str, images: int) -> dict:
    torch.manual_seed(0)
    network = torchvision.models.get_model(name).eval().to(memory_format=torch.channels_last)
    batches = [torch.randn(BATCH, 3, 224, 224) for _ in range(images // BATCH)]
    batches = [batch.contiguous(memory_format=torch.channels_last) for batch in batches]
    reestimate_batch_norm(network, batches[:2], total=2, momentum=None)
    calibration = Calibration(gram_batches=len(batches), scale_batches=len(batches))
    settings = Settings(Bits(4, 4), calibration, BatchNorm(batches=len(batches)))
    baseline = seconds_of(lambda: forward(network, batches))
    start = time.perf_counter()
    quantized = ptq.quantize(network, batches, method=method, settings=settings)
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
        "peak memory, MB": provenance()["peak_memory_mb"],
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("networks", nargs="*", default=["resnet18"], help="torchvision's names (default: resnet18)")
    parser.add_argument("--methods", nargs="+", choices=methods.names(), default=["bitsplit", "bitsplit_lattice"])
    parser.add_argument("--images", type=int, default=640, help="calibration images (default: 640)")
    arguments = parser.parse_args()
    jobs = [(name, method) for name in arguments.networks for method in arguments.methods]
    table = pandas.DataFrame([measure_quantize(*job, arguments.images) for job in jobs])
    # Digits before the table is turned: its columns then hold names and numbers.
    text = table.map(lambda value: f"{value:.4g}" if isinstance(value, float) else value).T
    publish(f"quantize_{arguments.images}", __doc__, table, text.to_markdown(headers=[], disable_numparse=True))


if __name__ == "__main__":
    main()
