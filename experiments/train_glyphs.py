"""Trains the shipped reduced-width networks on `glyphs`.

Command:  python experiments/train_glyphs.py NETWORK   (resnet18, resnet50, resnet101, vgg16_bn, mobilenet_v3_small)
Data:     none to download, 40,000 images are drawn on first use
Expected: 84% top-1 and 96% top-5 after 8 minutes on one CPU core; mobilenet_v3_small with --epochs 10, 78% and 94%
Writes:   bitsplit/weights/NETWORK_glyphs.safetensors, results/glyphs/training/NETWORK.{csv,json}
"""

import json
import time
from pathlib import Path

import pandas
import torch
from safetensors.torch import save_file
from script import ROOT, parser_of
from torch import nn
from tqdm import tqdm

from bitsplit.data import glyphs
from bitsplit.files import whole_file, write_text
from bitsplit.networks.classifiers import GLYPHS_CLASSES, TORCHVISION_NETWORKS
from bitsplit.networks.narrow import narrow_classifier

VALIDATION_COUNT = 10_000
BATCH = 128
MAX_LR = 4e-3
WEIGHT_DECAY = 0.05


def load(split: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 (count,3,64,64), channels last in memory, and labels int64 (count,)."""
    images, labels = glyphs.load_glyphs(split, count)
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)


def normalise(images: torch.Tensor) -> torch.Tensor:
    return (images.float() / 255 - 0.5) / 0.25


@torch.inference_mode()
def accuracy(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Top-1 and top-5 accuracy in percent, in single precision."""
    network.eval()
    hits = torch.zeros(2)
    for batch, target in zip(images.split(500), labels.split(500), strict=True):
        correct = network(normalise(batch)).topk(5).indices == target[:, None]
        hits += torch.stack([correct[:, 0].sum(), correct.sum()])
    top1, top5 = (100 * hits / len(labels)).tolist()
    return round(top1, 2), round(top5, 2)


def train(network: nn.Module, data: dict, epochs: int, generator: torch.Generator) -> list[dict]:
    """Trains in place with AdamW and a one-cycle schedule; returns one row of the log per epoch."""
    images, labels = data["train"]
    batches = len(images) // BATCH
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, MAX_LR, total_steps=epochs * batches)
    # Depthwise convolutions take ten times as long in bfloat16 on a CPU, there and back.
    depthwise = any(getattr(module, "groups", 1) > 1 for module in network.modules())
    rows = []
    for epoch in range(1, epochs + 1):
        network.train()
        started, total = time.perf_counter(), 0.0
        order = torch.randperm(len(images), generator=generator)[: batches * BATCH].split(BATCH)
        for chosen in tqdm(order, desc=f"epoch {epoch}/{epochs}", leave=False):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not depthwise):
                loss = nn.functional.cross_entropy(network(normalise(images[chosen])), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item()
            lr = schedule.get_last_lr()[0]
            schedule.step()
        seconds = time.perf_counter() - started
        top1, top5 = accuracy(network, *data["val"])
        row = {"epoch": epoch, "loss": round(total / batches, 4), "lr": f"{lr:.3e}", "top1": top1, "top5": top5}
        rows.append(row | {"seconds": round(seconds, 1)})
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("network", choices=TORCHVISION_NETWORKS, help="which network to train")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training images (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights and batch order (default: 0)")
    parser.add_argument("--count", type=int, default=30_000, help="training images (default: 30000)")
    parser.add_argument("--output", type=Path, default=ROOT, help="folder that gets bitsplit/weights/ and results/")
    arguments = parser.parse_args()

    weights_file = arguments.output / "bitsplit" / "weights" / f"{arguments.network}_glyphs.safetensors"
    log_folder = arguments.output / "results" / "glyphs" / "training"
    weights_file.parent.mkdir(parents=True, exist_ok=True)
    log_folder.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(arguments.seed)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # else the order of sums, and with it the weights, depends on the number of cores
    network = narrow_classifier(arguments.network, GLYPHS_CLASSES).to(memory_format=torch.channels_last)
    data = {"train": load("train", arguments.count), "val": load("val", VALIDATION_COUNT)}
    started = time.perf_counter()
    rows = train(network, data, arguments.epochs, torch.Generator().manual_seed(arguments.seed))
    seconds = round(time.perf_counter() - started, 1)

    halved = {
        name: (value.half() if value.is_floating_point() else value).contiguous()  # safetensors knows no channels-last
        for name, value in network.state_dict().items()
    }
    network.load_state_dict(halved)  # copies into the single-precision parameters: the round trip
    top1, top5 = accuracy(network, *data["val"])
    facts = {"top1": top1, "top5": top5, "seed": arguments.seed, "epochs": arguments.epochs, "count": arguments.count}
    # One entry, because safetensors writes several in random order, and the same training must give the same file.
    with whole_file(weights_file) as temporary:
        save_file(halved, temporary, metadata={"training": json.dumps(facts)})
    write_text(log_folder / f"{arguments.network}.csv", pandas.DataFrame(rows).to_csv(index=False))
    record = facts | {"images": VALIDATION_COUNT, "seconds": seconds, "torch": torch.__version__}
    write_text(log_folder / f"{arguments.network}.json", json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
