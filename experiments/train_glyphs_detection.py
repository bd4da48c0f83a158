"""Trains the shipped reduced-width detectors on `glyphs_coco`, with mmengine's runner; the backbone starts from the
shipped classifier of `glyphs`.

Command:  python experiments/train_glyphs_detection.py NETWORK   (retinanet or mask_rcnn; after `make setup-detection`)
Data:     none to download, 3,500 scenes are drawn on first use
Expected: see results/glyphs_coco/training/NETWORK.json for what the shipped weights reached, and in how long
Writes:   bitsplit/weights/NETWORK_glyphs.safetensors, results/glyphs_coco/training/NETWORK.json
"""

import json
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from script import ROOT, parser_of

from bitsplit.data.coco import GlyphsCoco
from bitsplit.files import whole_file, write_text
from bitsplit.networks.detectors import GLYPHS_CATEGORIES, GLYPHS_SIDE, Detector, require_mmdet
from bitsplit.networks.weights import shipped
from bitsplit.tasks.detection import Detection, coco_dataset

# Few, for AP to leave room below what the scenes allow: 10 take RetinaNet to 79.
EPOCHS = {"retinanet": 5, "mask_rcnn": 3}
BATCH = 16
MAX_LR = 2e-3
WEIGHT_DECAY = 0.05


def configuration(name: str, epochs: int, seed: int, work: str):
    """mmengine's configuration of the whole training."""
    from bitsplit.networks.narrow_detectors import narrow_detector

    config = narrow_detector(name, GLYPHS_CATEGORIES, GLYPHS_SIDE)
    # Characters have no mirror images.
    pipeline = [step for step in config.train_dataloader.dataset.pipeline if step.type != "RandomFlip"]
    scenes = GlyphsCoco().scenes("train")
    dataset = coco_dataset(scenes, pipeline, tuple(scenes.categories)) | {"test_mode": False}
    config.train_dataloader = {
        "batch_size": BATCH,
        "num_workers": 1,
        "persistent_workers": True,
        "sampler": {"type": "DefaultSampler", "shuffle": True},
        "dataset": dataset,
    }
    config.optim_wrapper = {
        "type": "OptimWrapper",
        "optimizer": {"type": "AdamW", "lr": MAX_LR, "weight_decay": WEIGHT_DECAY},
        "clip_grad": {"max_norm": 10},
    }
    total = epochs * -(-len(scenes) // BATCH)
    config.param_scheduler = [{"type": "OneCycleLR", "eta_max": MAX_LR, "total_steps": total, "by_epoch": False}]
    config.train_cfg = {"type": "EpochBasedTrainLoop", "max_epochs": epochs}
    for key in ("val_dataloader", "val_cfg", "val_evaluator", "test_dataloader", "test_cfg", "test_evaluator"):
        config[key] = None
    backbone = Path(work) / "backbone.pth"
    torch.save(load_file(shipped("resnet18_glyphs.safetensors")), backbone)
    config.model.backbone.init_cfg = {"type": "Pretrained", "checkpoint": str(backbone)}
    config.default_hooks.checkpoint.interval = epochs
    config.randomness = {"seed": seed, "deterministic": True}
    config.work_dir = work
    return config


def write_log(name: str, weights: Path, facts: dict, output: Path) -> None:
    """Average precision of the written weights, and how they came about, to results/ under `output`."""
    task = Detection(Detector(name, weights=str(weights)), GlyphsCoco(), torch.device("cpu"))
    log = task.float_metrics | facts
    write_text(output / "results" / "glyphs_coco" / "training" / f"{name}.json", json.dumps(log, indent=2) + "\n")
    print(json.dumps(log))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("network", choices=EPOCHS, help="which network to train")
    parser.add_argument("--epochs", type=int, help="passes over the training scenes (default: 5, Mask R-CNN 3)")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights and batch order (default: 0)")
    parser.add_argument("--output", type=Path, default=ROOT, help="folder that gets bitsplit/weights/ and results/")
    arguments = parser.parse_args()
    epochs = arguments.epochs or EPOCHS[arguments.network]
    require_mmdet()
    from mmdet.utils import register_all_modules
    from mmengine.runner import Runner

    register_all_modules(init_default_scope=True)
    torch.set_num_threads(1)  # else the order of sums, and with it the weights, depends on the number of cores
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        runner = Runner.from_cfg(configuration(arguments.network, epochs, arguments.seed, work))
        runner.train()
        state = runner.model.state_dict()
    seconds = round(time.perf_counter() - started, 1)

    weights = arguments.output / "bitsplit" / "weights" / f"{arguments.network}_glyphs.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    halved = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    with whole_file(weights) as temporary:
        save_file({name: value.contiguous() for name, value in halved.items()}, temporary)
    facts = {"epochs": epochs, "seed": arguments.seed, "seconds": seconds, "torch": torch.__version__}
    write_log(arguments.network, weights, facts, arguments.output)


if __name__ == "__main__":
    main()
