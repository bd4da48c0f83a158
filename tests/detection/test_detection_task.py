"""Average precision against pycocotools by hand, and calibration through the detector's own pipeline."""

import json

import numpy as np
import pytest
import torch

from bitsplit.errors import InputError
from bitsplit.tasks.detection import average_precision


def by_hand(annotations, detections, kind, images=None) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(annotations))
    evaluation = COCOeval(truth, truth.loadRes(str(detections)), kind)
    if images:
        evaluation.params.imgIds = images
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
    found = average_precision(annotations, file, "bbox")
    assert [found[name] for name in ("ap", "ap50", "ap75")] == pytest.approx([100, 100, 100])
    file.write_text("[]")
    assert average_precision(annotations, file, "bbox") == {"ap": 0, "ap50": 0, "ap75": 0, "ap_without": []}


def test_annotations_numbered_from_0_that_say_nothing_of_crowds_count_as_any_others(coco_root, tmp_path):
    """pycocotools takes a match with id 0 for none, and fails without `iscrowd`."""
    content = json.loads((coco_root / "annotations" / "instances_val2017.json").read_text())
    for number, one in enumerate(content["annotations"]):
        del one["iscrowd"]
        one["id"] = number
    annotations, file = tmp_path / "truth.json", tmp_path / "found.json"
    annotations.write_text(json.dumps(content))
    first = {key: content["annotations"][0][key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
    file.write_text(json.dumps([first]))
    alone = average_precision(annotations, file, "bbox")["ap"]
    file.write_text(json.dumps([first | {"bbox": [0, 0, 1, 1]}]))
    assert alone > average_precision(annotations, file, "bbox")["ap"] == 0
    assert json.loads(annotations.read_text()) == content


def test_precision_without_a_block_is_pycocotools_on_the_other_images(tmp_path):
    draw = np.random.default_rng(0)
    images = [{"id": 7 * index + 3, "width": 100, "height": 100, "file_name": f"{index}.png"} for index in range(60)]
    boxes = draw.uniform(5, 45, (60, 4, 4)).round(1)
    truth = [
        {"id": 4 * i + k + 1, "image_id": images[i]["id"], "category_id": 1 + k % 2, "iscrowd": 0}
        | {"bbox": boxes[i, k].tolist(), "area": float(boxes[i, k, 2] * boxes[i, k, 3])}
        for i in range(60)
        for k in range(4)
    ]
    categories = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
    annotations, file = tmp_path / "truth.json", tmp_path / "found.json"
    annotations.write_text(json.dumps({"images": images, "annotations": truth, "categories": categories}))
    found = [
        {key: one[key] for key in ("image_id", "category_id")}
        | {"bbox": (np.array(one["bbox"]) + draw.normal(0, 3, 4)).tolist(), "score": draw.random()}
        for one in truth
    ]
    file.write_text(json.dumps(found))
    precisions = average_precision(annotations, file, "bbox")
    assert len(precisions["ap_without"]) == 50 and len(set(precisions["ap_without"])) > 10
    for block in (0, 9, 10, 49):
        others = [image["id"] for place, image in enumerate(images) if place % 50 != block]
        assert precisions["ap_without"][block] == pytest.approx(by_hand(annotations, file, "bbox", others)[0], abs=1e-4)
    file.write_text("[]")
    assert average_precision(annotations, file, "bbox")["ap_without"] == [0] * 50


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


@pytest.mark.parametrize("masks", [{}, {"segmentation": []}])
def test_boxes_alone_do_for_a_detector_of_boxes_and_not_for_one_of_masks(detection, coco_root, masks):
    """COCO's evaluation ends in a KeyError, or an IndexError, where a mask is missing."""
    annotations = coco_root / "annotations" / "instances_val2017.json"
    text = annotations.read_text()
    content = json.loads(text)
    del content["annotations"][-1]["segmentation"]
    content["annotations"][-1] |= masks
    annotations.write_text(json.dumps(content))
    try:
        assert detection("retinanet").evaluate(detection("retinanet").module)["bbox_ap"] > 20
        task = detection("mask_rcnn")
        with pytest.raises(InputError, match="instances_val2017.json has annotations without a mask"):
            task.evaluate(task.module)
    finally:
        annotations.write_text(text)


def test_a_detector_that_finds_nothing_has_no_detections(detection):
    task = detection("retinanet")
    task.module.detector.test_cfg.score_thr = 1.0
    found = task.detections(task.module, least_score=0.5)
    assert len(found) == 8 and not any(found.values())
