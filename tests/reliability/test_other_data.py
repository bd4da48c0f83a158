"""A record is that of its data: other images under the same names, or in a folder of the same name, are other data."""

import json
import os
import shutil

import pytest
from conftest import ROOT, SMALL, composed
from PIL import Image
from safetensors.torch import load_file, save_file

from bitsplit.data.imagenet import ImageNet
from bitsplit.data.images import Preprocessing
from bitsplit.errors import InputError
from bitsplit.files import files_digest
from bitsplit.networks.weights import SHIPPED
from bitsplit.report import record
from bitsplit.runs import bench
from bitsplit.runs.experiment import Run


@pytest.fixture
def run_of(imagenet_root, mobilenet, tmp_path):
    """The run on a copy of the small ImageNet, as a new process would see it."""

    def copied(name: str, data: str):
        root = tmp_path / name / "images"
        if not root.exists():
            shutil.copytree(imagenet_root, root)

        def run() -> Run:
            bench._benches.clear(), bench._data_sets.clear()
            line = [f"data={data}", f"data.root={root}", *mobilenet]
            return Run.of(composed(*line, "calibration.batch_size=8", f"results={tmp_path / 'results'}"))

        return root, run

    return copied


@pytest.mark.parametrize("data", ["folder", "imagenet"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_image_replaced_in_place_is_other_data(run_of, data, split):
    root, run = run_of("A", data)
    before = run().identity
    assert run().identity == before
    Image.new("RGB", (300, 260)).save(next((root / split).rglob("*.jpg")))
    assert record.config_hash(run().identity) != record.config_hash(before)


def test_a_folder_of_the_same_name_elsewhere_is_other_data_only_where_its_images_are(run_of):
    (_, first), (root, second) = run_of("A", "folder"), run_of("B", "folder")
    assert first().identity == second().identity and first().path == second().path
    next(root.rglob("*.jpg")).unlink()
    assert first().identity != second().identity


def test_statistics_are_told_apart_by_times_too(run_of):
    root, run = run_of("A", "imagenet")
    image = next((root / "train").rglob("*.jpg"))
    before = run().bench.files_digest(times=True)
    os.utime(image, (0, 0))
    assert run().bench.files_digest(times=True) != before


def test_images_of_one_size_are_told_apart_by_what_is_in_them(tmp_path):
    for name, value in (("first", 0), ("second", 255)):
        (tmp_path / name).mkdir()
        for index in range(3):
            Image.new("RGB", (64, 64), (value,) * 3).save(tmp_path / name / f"{index}.ppm")
    digests = {files_digest(sorted((tmp_path / name).iterdir()), tmp_path / name) for name in ("first", "second")}
    assert len(digests) == 2


def test_decoded_images_are_those_of_their_folder(tmp_path):
    """Of the same names, sizes and times."""
    means = []
    for name, value in (("first", 0), ("second", 255)):
        folder = tmp_path / name / "val" / "n01440764"
        folder.mkdir(parents=True)
        Image.new("RGB", (224, 224), (value,) * 3).save(folder / "0.ppm")
        os.utime(folder / "0.ppm", (0, 0))
        images, _ = next(iter(ImageNet(str(tmp_path / name), None).validation(Preprocessing(), 1)))
        means.append(images.mean().item())
    assert means[1] > means[0] + 1


def test_other_data_and_weights_do_not_replace_a_record(tmp_path):
    """Fewer images have records of their own; other weights, and images otherwise other, are refused."""
    own = SHIPPED / "resnet18_glyphs.safetensors"
    weights = load_file(own)
    weights["fc.bias"] += 1
    save_file(weights, tmp_path / "other.safetensors")
    keys = {
        "plain": [],
        "own": [f"model.weights={own}"],
        "fewer": ["data.validation_images=50"],
        "other": [f"model.weights={tmp_path / 'other.safetensors'}"],
    }
    line = ["data=glyphs", f"results={tmp_path / 'results'}"]
    runs = {name: Run.of(composed(*line, *more)) for name, more in keys.items()}
    assert {name: run.variant for name, run in runs.items()} == dict.fromkeys(runs, "") | {
        "fewer": "data.validation_images=50"
    }
    assert len({run.path for run in runs.values()}) == 2

    run, content = runs["plain"], json.loads((ROOT / "results/glyphs/runs/resnet18-bitsplit-w4a4-s0.json").read_text())
    record.write(run.path, content)
    assert run.existing_record()["metrics"] == runs["own"].existing_record()["metrics"] == content["metrics"]
    assert runs["fewer"].existing_record() is None
    with pytest.raises(InputError, match="record of other weights"):
        runs["other"].existing_record()
    content["config"]["data"]["resize"] = 128
    content["config_hash"] = record.config_hash(content["config"])
    record.write(run.path, content)
    with pytest.raises(InputError, match="record of other images or preprocessing"):
        run.existing_record()
    assert run.existing_record(force=True) is run.existing_record(force=1) is None


@pytest.mark.slow
@pytest.mark.parametrize("split", ["val", "train"])
def test_an_image_that_can_be_read_again_is_read_again(command, tmp_path, imagenet_root, mobilenet, split):
    """A file system may fail once; names, sizes and times say nothing of it."""
    root = shutil.copytree(imagenet_root, tmp_path / "images")
    path = sorted((root / split).rglob("*.jpg"))[1]
    content, facts = path.read_bytes(), path.stat()
    line = ["data=imagenet", f"data.root={root}", *mobilenet, *SMALL, "method=tflite", "abits=8"]
    found = {}
    for folder, wbits, there in (("one", 4, False), ("one", 3, True), ("other", 3, True)):
        path.write_bytes(content if there else bytes(len(content)))
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        variables = {"BITSPLIT_CACHE": str(tmp_path / folder)}
        done = command(*line, f"wbits={wbits}", "force=true", **variables)
        assert done.returncode == 0, done.stderr
        assert ("skipped" in done.stderr) != there
        (record_path,) = (tmp_path / "results").rglob(f"*-w{wbits}a8-*.json")
        found[folder] = {key: json.loads(record_path.read_text())[key] for key in ("metrics", "layers")}
    assert found["one"] == found["other"]


def test_drawn_data_have_no_files():
    assert Run.of(composed("data=glyphs")).identity["data"]["files"] is None


@pytest.mark.parametrize("change", [("metrics", "quantized", "top1"), ("wbits",), ("config", "seed")])
def test_a_record_changed_by_hand_is_named_and_left_out(tmp_path, capsys, change):
    source = next(path for path in sorted((ROOT / "results" / "glyphs" / "runs").glob("*.json")))
    content = json.loads(source.read_text())
    path = tmp_path / source.name
    record.write(path, content)
    assert record.read(path) == content
    *parents, key = change
    part = content
    for parent in parents:
        part = part[parent]
    part[key] += 1
    path.write_text(json.dumps(content))
    assert record.read(path) is None
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 100_000, b"", b"{}", b"null"])
def test_whatever_lies_among_the_records_is_named_and_left_out(tmp_path, capsys, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    assert record.read(path) is None and "x.json" in capsys.readouterr().err
    (tmp_path / "folder.json").mkdir()
    assert record.read(tmp_path / "folder.json") is None
