"""`python run.py model=retinanet|mask_rcnn` as a user types it, and one line for whatever is wrong."""

import json
import re
import shutil

import pytest
from conftest import ROOT, SHARED, SMALL, experiment

from bitsplit.networks.weights import shipped
from bitsplit.report import record

TINY_COCO = SHARED / "data" / "tiny_coco"


@pytest.fixture
def own(config_of):
    """Arguments for a shipped network under a configuration of the user's own."""
    return lambda name: [
        f"model={name}",
        f"model.config={config_of(name)}",
        f"model.weights={shipped(f'{name}_glyphs.safetensors')}",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet", "mask_rcnn"])
def test_a_run_on_a_coco_folder(command, own, coco_root, tmp_path, name):
    arguments = [*own(name), "data=coco", f"data.root={coco_root}", *SMALL, "wbits=4", "abits=8"]
    first = command(*arguments)
    assert first.returncode == 0, first.stderr
    assert "box AP" in first.stdout and ("mask AP" in first.stdout) == (name == "mask_rcnn")
    (path,) = (tmp_path / "results").rglob("*.json")
    assert path.parts[-3] == "coco_8" and path.name.startswith(f"{name}-bitsplit-w4a8-s0")
    run = record.read(path)
    assert run["metrics"]["fp32"]["bbox_ap"] > 20 and str(ROOT) not in path.read_text()
    again = command(*arguments)
    assert "Already there" in again.stdout


@pytest.mark.slow
def test_hours_are_estimated_for_the_cells_without_a_record(command, own, coco_root, tmp_path):
    cells = [*own("retinanet"), "data=coco", f"data.root={coco_root}", *SMALL, "calibration.batch_size=4"]
    assert command(*cells, "method=tflite", "abits=8", "wbits=4").returncode == 0

    results = f"results={tmp_path / 'results'}"
    done = experiment("estimate_cost", *cells, "method=tflite", "abits=8,6", results)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("COCO 2017 validation, 8 images; cells without a record: table5 1 of 2")
    assert re.search(r"RetinaNet +1 +8 +[\d.]+ +[\d.]+", done.stdout) and "In all " in done.stdout
    wrong = refused(experiment("estimate_cost", "data=coco", "data.root=no/such/folder", results))
    assert "no/such/folder" in wrong


def refused(done) -> str:
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


@pytest.mark.slow
def test_what_is_wrong_is_said_in_one_line(command, own, coco_root, tmp_path):
    def copied(name, **parts):
        root = tmp_path / name
        shutil.copytree(coco_root, root)
        path = root / "annotations" / "instances_val2017.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | parts))
        return root

    def tried(root, *arguments):
        return refused(command(*arguments or own("retinanet"), "data=coco", f"data.root={root}", *SMALL))

    corrupt = copied("corrupt")
    (corrupt / "annotations" / "instances_val2017.json").write_text('{"images": [')
    assert "is not a COCO annotation file" in tried(corrupt)
    assert "names no categories" in tried(copied("bare", categories=[]))
    holed = copied("holed")
    (holed / "val2017" / "000002.png").unlink()
    assert "1 of 8 images are missing" in tried(holed)
    other = [*own("retinanet")[:2], f"model.weights={shipped('mask_rcnn_glyphs.safetensors')}"]
    assert "another network than retinanet" in tried(coco_root, *other)
    assert "could not be downloaded" in tried(coco_root, "model=retinanet")
    assert "is a network for detection" in refused(command("model=retinanet", "data=glyphs"))
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
@pytest.mark.skipif(not TINY_COCO.is_dir(), reason="needs the shared COCO images")
@pytest.mark.parametrize("name", ["retinanet", "mask_rcnn"])
def test_a_network_on_resnet50_from_images_to_average_precision(command, tmp_path, name):
    """With random weights, and images made small, for a test's time; everything else is mmdet's own configuration."""
    import torch

    from bitsplit.networks.detectors import ZOO, build, require_mmdet

    require_mmdet()
    from mmengine.hub import get_config

    config = get_config(ZOO[name]["r50"])
    for step in config.test_dataloader.dataset.pipeline:
        if step.type == "Resize":
            step.scale = (200, 120)
    if name == "mask_rcnn":  # random scores are too low for any detection, and the mask head would see none
        config.model.test_cfg.rpn.update(nms_pre=100, max_per_img=20)
        config.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
    torch.manual_seed(0)
    torch.save(build(config).state_dict(), tmp_path / "random.pth")
    config.dump(tmp_path / "config.py")
    done = command(
        f"model={name}",
        f"model.config={tmp_path / 'config.py'}",
        f"model.weights={tmp_path / 'random.pth'}",
        "data=coco",
        f"data.root={TINY_COCO}",
        *SMALL,
        "method=tflite",  # seconds where bit-split takes a minute
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "results").rglob("*.json")
    run = record.read(path)
    assert path.parts[-3] == "coco_50" and run["metrics"]["quantized"]["images"] == 50
    assert all(layer["wbits"] < 32 for layer in run["layers"])
