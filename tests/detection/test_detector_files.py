"""Detectors leave the process: packed files, ONNX files of backbone, neck and heads, integers, and the pages."""

import dataclasses

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import SMALL as SMALL_RUN
from onnx_runs import initializer_types
from small_networks import SMALL

import bitsplit
from bitsplit.errors import InputError
from bitsplit.networks.detectors import RawDetector

NAMES = ["retinanet", "mask_rcnn"]


@pytest.fixture(scope="module")
def quantized(detection):
    """A shipped detector at W4A4 and its task, by name; made once."""
    known = {}

    def of(name):
        if name not in known:
            task = detection(name)
            settings = dataclasses.replace(SMALL, layers=task.layers)
            images = task.calibration(4, 2, seed=0)
            known[name] = task, bitsplit.quantize(task.module, images, wbits=4, abits=4, settings=settings)
        return known[name]

    return of


def images_of(task):
    return next(iter(task.calibration(2, 1, seed=1)))


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_detector_finds_the_very_same(quantized, tmp_path, name):
    task, qmodel = quantized(name)
    bitsplit.save(qmodel, tmp_path / "detector")
    loaded = bitsplit.load(tmp_path / "detector", task.module)
    images = images_of(task)
    regions = RawDetector(qmodel.detector).example_regions(images)
    with torch.inference_mode():
        raw, again = (RawDetector(network.detector)(images, *regions) for network in (qmodel, loaded))
    assert all(torch.equal(raw[key], again[key]) for key in raw)
    assert task.evaluate(loaded) == task.evaluate(qmodel)
    weights = sum(tensor.numel() for tensor in task.module.state_dict().values())
    assert (tmp_path / "detector").stat().st_size < 0.2 * 4 * weights
    bitsplit.save(loaded, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "detector").read_bytes()
    other = quantized(NAMES[name == NAMES[0]])[0].module
    with pytest.raises(InputError, match="another architecture"):
        bitsplit.load(tmp_path / "detector", other)


@pytest.mark.parametrize("name", NAMES)
def test_integers_compute_the_same_in_every_layer(quantized, name):
    task, qmodel = quantized(name)
    table = bitsplit.verify(qmodel, images_of(task)).set_index("name")
    assert set(table.index) == set(qmodel.report["name"])
    assert list(table.index[table.note != ""]) == ["detector.backbone.conv1"]  # its input is in floating point
    assert table.rescale_deviation.max() < 1e-6 and table.deviation.max() < 1e-5


@pytest.mark.parametrize("form", ["float", "integer"])
@pytest.mark.parametrize("name", NAMES)
def test_onnxruntime_gives_the_raw_outputs(quantized, tmp_path, name, form):
    task, qmodel = quantized(name)
    images = images_of(task)
    bitsplit.export_onnx(qmodel, tmp_path / "detector.onnx", images, form)
    types = initializer_types(tmp_path / "detector.onnx")
    layers = qmodel.report
    assert types["INT4"] == (layers["wbits"] == 4).sum()

    more = torch.cat([images, images.flip(3)])
    generator = torch.Generator().manual_seed(0)
    regions = [
        torch.rand(9, *x.shape[1:], generator=generator) for x in RawDetector(qmodel.detector).example_regions(more)
    ]
    with torch.inference_mode():
        expected = RawDetector(qmodel.detector)(more, *regions)
    session = onnxruntime.InferenceSession(str(tmp_path / "detector.onnx"))
    inputs = dict(zip(["images", "box_features", "mask_features"], [more, *regions], strict=False))
    outputs = session.run(None, {key: values.numpy() for key, values in inputs.items()})
    assert [output.name for output in session.get_outputs()] == list(expected)
    for values, output in zip(expected.values(), outputs, strict=True):
        error = np.abs(values.numpy() - output)
        assert error.shape == values.shape
        # A value between two codes may fall to either side; what reads it differs by a code, in a pyramid all over an
        # image. Most images have none.
        by_image = error.reshape(len(error), -1).mean(axis=1) / float(values.abs().mean())
        assert np.median(by_image) < 1e-3 and by_image.max() < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_summary_and_page(quantized, tmp_path, name):
    _, qmodel = quantized(name)
    assert "at 4 bits" in qmodel.summary()
    qmodel.to_html(tmp_path / "page.html")
    assert "detector.backbone.layer1.0.conv1" in (tmp_path / "page.html").read_text()


@pytest.mark.slow
def test_a_run_saves_writes_onnx_and_evaluates_again(command, config_of, coco_root, tmp_path):
    from bitsplit.networks.weights import shipped

    chosen = ["model=retinanet", f"model.config={config_of('retinanet')}", "data=coco", f"data.root={coco_root}"]
    chosen += [f"model.weights={shipped('retinanet_glyphs.safetensors')}", *SMALL_RUN]
    files = {key: tmp_path / f"detector.{key}" for key in ("save", "onnx", "html")}
    made = command(*chosen, "wbits=4", "abits=8", *(f"{key}={path}" for key, path in files.items()))
    assert made.returncode == 0, made.stderr
    assert all(path.stat().st_size for path in files.values())
    again = command(*chosen, f"evaluate={files['save']}")
    assert again.returncode == 0, again.stderr
    precisions = [
        [line.split()[-3:] for line in done.stdout.splitlines() if line.strip().startswith("quantized")]
        for done in (made, again)
    ]
    assert len(precisions[0]) == 1 and precisions[0] == precisions[1]
