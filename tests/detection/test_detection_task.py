"""Average precision against pycocotools by hand, and calibration through the detector's own pipeline."""

import json

import pytest
import torch

from bitsplit.errors import InputError
from bitsplit.tasks.detection import average_precision


def by_hand(annotations, detections, kind) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(annotations))
    evaluation = COCOeval(truth, truth.loadRes(str(detections)), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [100 * number for number in evaluation.stats[:3]]


@pytest.mark.parametrize("name, kinds", [("retinanet", ["bbox"]), ("mask_rcnn", ["bbox", "segm"])])
def test_metrics_are_pycocotools_on_the_dumped_predictions(detection, name, kinds, tmp_path):
    task = detection(name)
    metrics = task.evaluate(task.module)
    files = task.predict(task.module, tmp_path, "again")
    assert list(files) == kinds
    for kind, file in files.items():
        found = [metrics[f"{kind}_{precision}"] for precision in ("ap", "ap50", "ap75")]
        assert found == pytest.approx(by_hand(task.data.scenes("val").annotations, file, kind), abs=1e-6)
        assert found[0] > 20  # the shipped networks find characters
    assert metrics["images"] == 8


def test_the_truth_as_detections_is_perfect_and_nothing_found_is_nothing(coco_root, tmp_path):
    annotations = coco_root / "annotations" / "instances_val2017.json"
    keys = ("image_id", "category_id", "bbox")
    truth = json.loads(annotations.read_text())["annotations"]
    file = tmp_path / "found.json"
    file.write_text(json.dumps([{key: one[key] for key in keys} | {"score": 0.9} for one in truth]))
    assert average_precision(annotations, file, "bbox") == pytest.approx({"ap": 100, "ap50": 100, "ap75": 100})
    file.write_text("[]")
    assert average_precision(annotations, file, "bbox") == {"ap": 0, "ap50": 0, "ap75": 0}


def test_calibration_reads_training_scenes_through_the_pipeline(detection):
    task = detection("retinanet")
    batches = task.calibration(batch_size=3, batches=9, seed=1)
    first, again = list(batches), list(batches)
    assert len(batches) == len(first) == 2 and all(batch.shape == (3, 3, 192, 192) for batch in first)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    pixels = torch.cat(first)
    assert pixels.min() >= -124 / 57 and pixels.max() <= 255 / 57  # normalised by mmdet's mean and deviation
    assert not torch.equal(first[0], next(iter(task.calibration(3, 9, seed=2))))


def test_categories_must_be_as_many_as_the_network_tells_apart(detection, monkeypatch, tmp_path):
    task = detection("retinanet")
    scenes = task.data.scenes("val")
    content = json.loads(scenes.annotations.read_text())
    content["categories"].append({"id": 21, "name": "one more"})
    fewer = tmp_path / "more.json"
    fewer.write_text(json.dumps(content))
    with pytest.raises(InputError, match="tells 20 categories apart, and .* names 21"):
        task.dataset(type(scenes)(fewer, scenes.images))


def test_a_damaged_image_is_named(detection, coco_root):
    task = detection("retinanet")
    path = coco_root / "val2017" / "000003.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    try:
        with pytest.raises(InputError, match="000003.png cannot be read"):
            task.evaluate(task.module)
    finally:
        path.write_bytes(whole)
