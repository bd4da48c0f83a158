"""Detectors: which layers are quantized and how, whose weights are read, and what is refused."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file
from small_networks import SMALL

import bitsplit
from bitsplit.errors import InputError
from bitsplit.networks.detectors import Detector
from bitsplit.networks.weights import shipped
from bitsplit.statistics.moments import weighted_layers

PREDICTIONS = {
    "retinanet": {"bbox_head.retina_cls", "bbox_head.retina_reg"},
    "mask_rcnn": {
        "rpn_head.rpn_cls",
        "rpn_head.rpn_reg",
        "roi_head.bbox_head.fc_cls",
        "roi_head.bbox_head.fc_reg",
        "roi_head.mask_head.conv_logits",
    },
}


def quantized(task):
    settings = dataclasses.replace(SMALL, layers=task.layers)
    return bitsplit.quantize(task.module, task.calibration(4, 2, seed=0), wbits=4, abits=4, settings=settings)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_every_layer_is_quantized_once_heads_included(detection, name):
    task = detection(name)
    report = quantized(task).report.set_index("name")
    assert set(report.index) == set(weighted_layers(task.module)) and report.index.is_unique
    assert (report["wbits"] < 32).all() and report["note"].fillna("").eq("").all()
    eight = {f"detector.{layer}" for layer in PREDICTIONS[name]}
    assert set(report.index[report["wbits"] == 8]) == eight | {"detector.backbone.conv1"}
    assert list(report.index[report["abits"] == 32]) == ["detector.backbone.conv1"]
    assert (report["relative_error"] < 0.1).all()


def test_inputs_that_no_relu_precedes_are_signed(detection):
    report = quantized(detection("mask_rcnn")).report.set_index("name")
    signed = {name.removeprefix("detector.") for name in report.index[report["signed"] == True]}  # noqa: E712
    assert {"neck.fpn_convs.0.conv", "rpn_head.rpn_conv", "roi_head.bbox_head.shared_fcs.0"} <= signed
    relu = {"neck.lateral_convs.0.conv", "rpn_head.rpn_cls", "roi_head.mask_head.upsample", "roi_head.bbox_head.fc_cls"}
    assert not relu & signed


def test_scope_backbone_neck_leaves_the_heads_alone(detection):
    task = detection("mask_rcnn", scope="backbone_neck")
    assert task.network.variant == "scope=backbone_neck"
    report = quantized(task).report.set_index("name")
    heads = report.index.str.contains("head")
    assert (report.loc[heads, ["wbits", "abits"]] == 32).all(axis=None)
    assert (report.loc[~heads, "wbits"] < 32).all()


def test_a_published_checkpoint_keeps_its_tensors_under_state_dict(detection, config_of, tmp_path):
    state = load_file(shipped("retinanet_glyphs.safetensors"))
    path = tmp_path / "published.pth"
    torch.save({"meta": {"epoch": 12, "CLASSES": ("A", "H")}, "state_dict": state}, path)
    network = Detector("retinanet", config=str(config_of("retinanet")), weights=str(path)).load("coco")
    expected = detection("retinanet").module.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in network.module.state_dict().items())


def test_weights_of_another_architecture(config_of):
    weights = str(shipped("mask_rcnn_glyphs.safetensors"))
    network = Detector("retinanet", config=str(config_of("retinanet")), weights=weights).load("coco")
    with pytest.raises(InputError, match="holds the weights of another network than retinanet"):
        _ = network.module


@pytest.mark.parametrize(
    "options, message",
    [
        ({"scope": "neck"}, "model.scope must be one of all, backbone_neck"),
        ({"backbone": "r34"}, "model.backbone must be one of r50, r18"),
        ({"backbone": "r18", "config": "x.py"}, "leave model.backbone out"),
        ({"name": "yolo"}, "model.name must be one of retinanet, mask_rcnn"),
    ],
)
def test_options_there_are_not(options, message):
    with pytest.raises(InputError, match=message):
        Detector(**{"name": "mask_rcnn"} | options)


def test_configurations_that_cannot_be_used(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("model = {")
    other = tmp_path / "other.py"
    other.write_text("optimizer = dict(type='SGD')")
    cases = {
        str(tmp_path / "none.py"): "is not a file",
        str(broken): "is not a configuration of mmdet",
        str(other): "is not a configuration of mmdet",
    }
    for config, message in cases.items():
        with pytest.raises(InputError, match=message):
            Detector("retinanet", config=config, weights="w.pth").load("coco")
    with pytest.raises(InputError, match="needs model.weights=FILE"):
        Detector("retinanet", config=str(other)).load("coco")
    with pytest.raises(InputError, match="reduced-width networks of its own"):
        Detector("retinanet", backbone="r18").load("glyphs_coco")


@pytest.mark.parametrize("name", ["retinanet", "mask_rcnn"])
@pytest.mark.parametrize("backbone, width", [("r18", 64), ("r50", 256)])
def test_mmdets_own_networks_of_either_backbone(name, backbone, width, tmp_path):
    weights = tmp_path / "w.pth"
    weights.touch()
    network = Detector(name, backbone=backbone, weights=str(weights)).load("coco")
    stage = network.build().backbone.layer1[0]
    assert (stage.conv3 if backbone == "r50" else stage.conv2).out_channels == width
    assert network.variant == ("backbone=r18" if backbone == "r18" else "")


def test_a_network_that_the_zoo_has_no_weights_of():
    with pytest.raises(InputError, match="no mask_rcnn on r18; give model.weights=FILE"):
        Detector("mask_rcnn", backbone="r18").load("coco")
