"""What a network's speed is measured on, and the measurement."""

import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from cell_costs import Speed
from measure import fixed_and_slope, forward, seconds_of
from PIL import Image
from torch import Tensor, nn

from bitsplit import methods, ptq
from bitsplit.data.images import ImageFiles, Preprocessing
from bitsplit.kept import computing_anew
from bitsplit.layers.batch_norm import measure_batch_norm
from bitsplit.layout import grouped_weight, weighted_layers
from bitsplit.plan import Plan
from bitsplit.runs.experiment import Run
from bitsplit.settings import Calibration, Settings
from bitsplit.solver.bitsplit import solve
from bitsplit.statistics.batches import CalibrationBatches
from bitsplit.statistics.memory import freed_memory_kept
from bitsplit.tasks.classification import Classification
from bitsplit.tasks.detection import Detection
from bitsplit.vision import torchvision

TIMED_INPUTS = 4608  # of a timed solve; VGG's first linear layer has 25,088
TIMED_ROWS = 64  # output channels of a timed solve; rows are independent, so its time is scaled to all of them


class Subject(NamedTuple):
    """A network with a few images to time it on, the seconds to read one, and the sizes of what it stands for."""

    network: nn.Module
    images: Tensor
    reading: float
    validation_images: int
    calibration: Calibration


def random_subject(name: str, device: torch.device, sample: int, validation_images: int) -> Subject:
    """torchvision's network on random images and with random weights, which take the same time."""
    network = torchvision.models.get_model(name).eval().to(device, memory_format=torch.channels_last)
    images = torch.randn(sample, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)
    return Subject(network, images, 0, validation_images, Calibration())


def run_subject(run: Run, sample: int, validation_images: int | None) -> Subject:
    """The network and the images of a run."""
    task, settings = run.bench.task, run.settings
    source = task.calibration(settings.calibration.batch_size, 1, settings.seed)
    batches = CalibrationBatches(source, task.module)
    with computing_anew():  # leaves nothing in the cache
        next(batches.first(1))  # glyphs and scenes are drawn once, images decoded once
        started = time.perf_counter()
        batch = next(batches.first(1))
        reading = (time.perf_counter() - started) / len(batch)
    calibration = replace(settings.calibration, batch_size=source.batch_size)
    return Subject(task.module, batch[:sample], reading, validation_images or _validation_images(task), calibration)


def _validation_images(task: Classification | Detection) -> int:
    if task.data.task == "detection":
        return len(task.data.scenes("val"))
    return len(task.data.validation(task.network.preprocessing, 1))  # batches of one image


def measure_speed(subject: Subject, algorithms: Iterable[str]) -> Speed:
    """`algorithms` are those of the solver that are timed."""
    network, images, device = subject.network, subject.images, subject.images.device
    size = max(1, len(images) // 2)
    batches, calibration = [images[:size], images[-size:]], subject.calibration
    total = calibration.gram_batches * calibration.batch_size

    def statistics(count: int) -> None:
        patches = max(1, calibration.patches * count * size // total)
        settings = Settings(calibration=Calibration(size, count, patches))
        some = CalibrationBatches(batches[:count], network)
        ptq.measure_statistics(network, Plan.of(network, some, methods.named("bitsplit"), settings), some)

    with freed_memory_kept():  # as in a run
        evaluation = seconds_of(lambda: forward(network, [images]), device)
        batch_norm = seconds_of(lambda: measure_batch_norm(network, [images], 1), device)
    fixed, slope = fixed_and_slope(statistics, 1, 2, device)
    return Speed(
        evaluation=evaluation / len(images) + subject.reading,
        batch_norm=batch_norm / len(images) + subject.reading,
        calibration=fixed + (slope / size + subject.reading) * total,
        solve={algorithm: solve_seconds(network, device, algorithm) for algorithm in algorithms},
    )


def statistics_bytes(network: nn.Module) -> int:
    """What the Gram matrices of all layers take on disk."""
    weights = map(grouped_weight, weighted_layers(network).values())
    return sum(len(weight) * weight.shape[-1] ** 2 * weight.element_size() for weight in weights)


def solve_seconds(network: nn.Module, device: torch.device, algorithm: str) -> float:
    """4-bit weights for every layer, timed once for each number of inputs on a few rows of a random problem."""
    total, timings = 0.0, {}
    generator = torch.Generator().manual_seed(0)
    for layer in weighted_layers(network).values():
        groups, rows, all_inputs = grouped_weight(layer).shape
        weight = grouped_weight(layer)[:, :, :TIMED_INPUTS].contiguous()
        inputs = weight.shape[-1]
        if (groups, inputs) not in timings:
            patches = torch.randn(groups, inputs + 64, inputs, generator=generator).to(device)
            gram = patches.mT @ patches / patches.shape[1]

            def solve_rows(count: int, gram=gram, weight=weight) -> None:
                part = weight[:, :count].contiguous()
                solve(gram, part @ gram, bits=4, weight=part, algorithm=algorithm)

            timings[groups, inputs] = fixed_and_slope(solve_rows, TIMED_ROWS // 2, TIMED_ROWS, device)
        fixed, slope = timings[groups, inputs]
        total += (fixed + slope * rows) * (all_inputs / inputs) ** 2  # an update costs N, and there are N
    return total


def decoding_seconds() -> float:
    """Seconds to read, resize and crop one JPEG image of ImageNet's usual size on one core."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "image.jpg"
        noise = torch.randint(0, 256, (12, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        Image.fromarray(noise.numpy()).resize((500, 375)).save(path, quality=90)
        files = ImageFiles([path] * 20, [0] * 20, Preprocessing().evaluation(resize=256))
        return seconds_of(lambda: list(map(files.__getitem__, range(20)))) / 20
