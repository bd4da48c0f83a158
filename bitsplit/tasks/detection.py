"""Detection and instance segmentation: an mmdet detector, its scenes, and COCO's average precision."""

import contextlib
import copy
import io
import json
import math
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bitsplit.data.coco import Scenes, read_annotations
from bitsplit.data.processes import reading_workers
from bitsplit.errors import InputError
from bitsplit.networks.detectors import DetectorModule, DetectorNetwork, quiet
from bitsplit.progress import progress
from bitsplit.settings import Layers
from bitsplit.statistics.memory import freed_memory_kept

IMAGES = 8  # a batch of the evaluation
# Calibration batches hold no more pixels than 64 of ImageNet's crops.
CALIBRATION_PIXELS = 64 * 224 * 224
# COCOeval's first numbers.
PRECISIONS = {"ap": 0, "ap50": 1, "ap75": 2}
BLOCKS = 50  # of images, each of which is left out once


def coco_dataset(scenes: Scenes, pipeline: list[dict], classes: tuple[str, ...]) -> dict:
    """mmdet's configuration of a data set of these scenes."""
    return {
        "type": "CocoDataset",
        "ann_file": str(scenes.annotations),
        "data_prefix": {"img": str(scenes.images)},
        "metainfo": {"classes": classes},
        "pipeline": pipeline,
        "test_mode": True,
    }


class Detection:
    """One detector on one data set of scenes; the counterpart of `Classification`.

    `data` offers name, title, domain and scenes(split); `source` is a model of `bitsplit.networks.detectors`.
    """

    def __init__(self, source, data, device: torch.device):
        self.data, self.device = data, device
        self.title: str = data.title
        self.network: DetectorNetwork = source.load(data.domain)

    @property
    def layers(self) -> Layers:
        return self.network.layers

    @cached_property
    def module(self) -> DetectorModule:
        """The floating-point detector on its device."""
        # Not in channels last: mmcv's RoI alignment takes every tensor's memory for contiguous.
        return self.network.module.to(self.device)

    def calibration(self, batch_size: int, batches: int, seed: int) -> "CalibrationScenes":
        """Up to `batches` batches of training scenes, through the detector's own pipeline for testing."""
        return CalibrationScenes(self, batch_size, batches, seed)

    @cached_property
    def float_metrics(self) -> dict:
        """Metrics of the floating-point detector on the validation scenes."""
        return self.evaluate(self.module, "floating point")

    def files(self, calibration: "CalibrationScenes") -> list[Path]:
        """The files that the numbers depend on, those of the calibration scenes first; none of drawn data."""
        if not hasattr(self.data, "root"):
            return []
        train, val = self.data.scenes("train"), self._validation
        return [train.annotations, *calibration.paths, val.annotations, *val.paths]

    def evaluate(self, module: DetectorModule, what: str = "evaluation") -> dict:
        """COCO's average precisions of `module` on the validation scenes, in percent, and `ap_without` as in
        `average_precision`."""
        with tempfile.TemporaryDirectory() as folder:
            files = self.predict(module, Path(folder), what)
            values = {kind: average_precision(self._validation.annotations, file, kind) for kind, file in files.items()}
        precisions = {f"{kind}_{name}": value for kind, numbers in values.items() for name, value in numbers.items()}
        return precisions | {"images": len(self._validation), "skipped": 0}

    @freed_memory_kept()
    @torch.inference_mode()
    def predict(self, module: DetectorModule, folder: Path, what: str) -> dict[str, Path]:
        """Detections on the validation scenes as COCO's result files in `folder`, by kind: "bbox", and "segm" where the
        detector has masks."""
        from mmdet.evaluation import CocoMetric

        dataset = self.dataset(self._validation)
        kinds = ["bbox", "segm"] if self._has_masks else ["bbox"]
        with quiet():
            metric = CocoMetric(
                str(self._validation.annotations), kinds, format_only=True, outfile_prefix=str(folder / "detections")
            )
        metric.dataset_meta = dataset.metainfo
        batches = scene_batches(dataset, range(len(dataset)), IMAGES)
        for batch in progress(batches, what, total=math.ceil(len(dataset) / IMAGES)):
            metric.process(batch, [sample.to_dict() for sample in module.detector.test_step(batch)])
        with quiet():
            metric.evaluate(len(dataset))
        return {kind: folder / f"detections.{kind}.json" for kind in kinds}

    @cached_property
    def truth(self):
        """The validation scenes' annotations as a pycocotools COCO."""
        return truth_of(self._validation.annotations)

    @property
    def ground_truth(self) -> dict[int, list[dict]]:
        """COCO annotations by identifier of the validation image."""
        return _by_image(self.truth)

    def detections(self, module: DetectorModule, least_score: float) -> dict[int, list[dict]]:
        """As `ground_truth`, what `module` finds; with masks where it has them."""
        with tempfile.TemporaryDirectory() as folder:
            *_, file = self.predict(module, Path(folder), "detections").values()
            if not json.loads(file.read_text(encoding="utf-8")):
                return {index: [] for index in self.truth.imgs}  # COCO takes no empty result
            with quiet():
                detections = self.truth.loadRes(str(file))
        return {
            index: [annotation for annotation in annotations if annotation["score"] >= least_score]
            for index, annotations in _by_image(detections).items()
        }

    def image(self, index: int) -> Path:
        """File of the validation image with this identifier."""
        return self._validation.images / self.truth.imgs[index]["file_name"]

    def dataset(self, scenes: Scenes):
        """mmdet's data set of these scenes with the detector's test pipeline, without its annotations."""
        from mmdet.registry import DATASETS

        dataset = self.network.preprocessing.test_dataloader.dataset
        pipeline = [step for step in dataset.pipeline if step.type != "LoadAnnotations"]
        detector = self.network.module.detector
        head = detector.roi_head.bbox_head if hasattr(detector, "roi_head") else detector.bbox_head
        head = head[-1] if isinstance(head, nn.ModuleList) else head  # of a cascade
        if head.num_classes != len(scenes.categories):
            raise InputError(
                f"the network tells {head.num_classes} categories apart, and {scenes.annotations} names "
                f"{len(scenes.categories)}"
            )
        with quiet():
            return DATASETS.build(coco_dataset(scenes, pipeline, tuple(scenes.categories)))

    @cached_property
    def _validation(self) -> Scenes:
        scenes = self.data.scenes("val")
        if self._has_masks and not scenes.masks:
            raise InputError(
                f"{scenes.annotations} has annotations without a mask ('segmentation'), which this detector is judged "
                "by; model=retinanet needs boxes alone"
            )
        return scenes

    @property
    def _has_masks(self) -> bool:
        return getattr(self.network.module.detector, "with_mask", False)


class CalibrationScenes:
    """Batches (N, 3, H, W) of training scenes in a random order, preprocessed and padded, read anew at each pass."""

    def __init__(self, task: Detection, batch_size: int, batches: int, seed: int):
        self._task, scenes = task, task.data.scenes("train")
        self._scenes = scenes
        pixels = read_image(self._dataset, 0)["inputs"].shape[-2:].numel()
        self.batch_size = max(1, min(batch_size, CALIBRATION_PIXELS // pixels, len(scenes)))
        self.whole_batch = self.batch_size  # for CalibrationBatches: it has as many pixels as one of small images
        count = min(batches, len(scenes) // self.batch_size) * self.batch_size
        self._order = np.random.default_rng(seed).permutation(len(scenes))[:count]

    def __len__(self) -> int:
        return len(self._order) // self.batch_size

    @property
    def paths(self) -> list[Path]:
        """Files of the scenes, in the order in which they are read."""
        return [self._scenes.paths[index] for index in self._order]

    def __iter__(self) -> Iterator[Tensor]:
        preprocessor = self._task.module.detector.data_preprocessor
        for batch in scene_batches(self._dataset, self._order.tolist(), self.batch_size):
            yield preprocessor(batch, False)["inputs"]

    @cached_property
    def _dataset(self):
        return self._task.dataset(self._scenes)


def _by_image(annotations) -> dict[int, list[dict]]:
    return {index: annotations.loadAnns(annotations.getAnnIds(imgIds=[index])) for index in annotations.imgs}


class _ReadScenes(Dataset):
    """Images of an mmdet data set; one that is damaged gives its InputError in the place of itself."""

    def __init__(self, dataset):
        self._dataset = dataset

    def __getitem__(self, index: int) -> dict | InputError:
        try:
            return read_image(self._dataset, index)
        except InputError as error:
            return error


def scene_batches(dataset, order: Sequence[int], batch_size: int) -> Iterator[dict]:
    """Batches of an mmdet data set as its detectors take them, read ahead by worker processes; InputError for the first
    image in the order that is damaged."""
    from mmengine.dataset import pseudo_collate

    # As bytes, for `reading_workers`.
    loader = DataLoader(_ReadScenes(dataset), batch_size, sampler=order, collate_fn=pickle.dumps, **reading_workers())
    for content in loader:
        samples = pickle.loads(content)
        if damaged := next((sample for sample in samples if isinstance(sample, InputError)), None):
            raise damaged
        yield pseudo_collate(samples)


def read_image(dataset, index: int) -> dict:
    """An image of an mmdet data set, through its pipeline; InputError where its file is damaged."""
    try:
        return dataset[index]
    except Exception as error:  # whatever a pipeline of the user's own may raise
        raise InputError(f"{dataset.get_data_info(index)['img_path']} cannot be read: {error!r}") from error


def truth_of(annotations: Path):
    """An annotation file as a pycocotools COCO."""
    from pycocotools.coco import COCO

    truth = COCO()
    truth.dataset = read_annotations(annotations)
    with quiet():
        truth.createIndex()
    return truth


def average_precision(annotations: Path, detections: Path, kind: str) -> dict[str, float | list[float]]:
    """COCO's AP, AP50 and AP75 of a result file, in percent; `kind` is "bbox" or "segm".

    `ap_without` has AP on all images but every fiftieth, counted from the first, the second, …: how far it moves says
    how sure the AP is (the jackknife), and how sure the difference to another network's on the same images.
    """
    from pycocotools.cocoeval import COCOeval

    truth = truth_of(annotations)
    blocks = BLOCKS if len(truth.imgs) >= BLOCKS else 0  # of fewer images some would be empty
    if not json.loads(detections.read_text(encoding="utf-8")):
        return dict.fromkeys(PRECISIONS, 0.0) | {"ap_without": [0.0] * blocks}  # COCO takes no empty result
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(str(detections)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        without = [round(100 * _ap_without(evaluation, block), 4) for block in range(blocks)]
    precisions = {name: 100 * float(evaluation.stats[place]) for name, place in PRECISIONS.items()}
    return precisions | {"ap_without": without}


def _ap_without(evaluation, block: int) -> float:
    """AP of a pycocotools COCOeval on all images but those of a block, whose matches it has."""
    part, params = copy.copy(evaluation), copy.deepcopy(evaluation.params)
    kept = [place for place in range(len(params.imgIds)) if place % BLOCKS != block]
    matches = np.array(evaluation.evalImgs, dtype=object)
    matches = matches.reshape(len(params.catIds), len(params.areaRng), len(params.imgIds))
    params.imgIds = [params.imgIds[place] for place in kept]
    # Objects of all sizes are COCOeval's first range, and its largest number of detections is the last.
    params.areaRng, params.areaRngLbl, params.maxDets = params.areaRng[:1], params.areaRngLbl[:1], params.maxDets[-1:]
    part.params = part._paramsEval = params
    part.evalImgs = list(matches[:, :1, kept].ravel())
    part.accumulate()
    precision = part.eval["precision"]
    return precision[precision > -1].mean() if (precision > -1).any() else 0.0
