"""`python run.py` as a user types it: runs, sweeps, resuming, and one line for whatever is wrong."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from conftest import ROOT, SMALL

from bitsplit import methods
from bitsplit.networks.narrow import narrow_classifier
from bitsplit.report import record

GLYPHS = ["data=glyphs", "data.validation_images=500", *SMALL]


def records(tmp_path) -> list:
    return sorted((tmp_path / "results").rglob("*.json"))


def test_a_run_writes_a_record_and_is_not_repeated_until_forced(command, tmp_path):
    first = command(*GLYPHS, "wbits=4", "abits=4")
    assert first.returncode == 0, first.stderr
    assert "floating point" in first.stdout and "quantized W4A4" in first.stdout
    (path,) = records(tmp_path)
    assert path.name.startswith("resnet18-bitsplit-w4a4-s0")
    written = record.read(path)
    assert written["metrics"]["quantized"]["images"] == 500
    assert written["metrics"]["fp32"]["top1"] > 70
    assert str(ROOT) not in path.read_text() and str(tmp_path) not in path.read_text()

    stamp = path.stat().st_mtime_ns
    again = command(*GLYPHS, "wbits=4", "abits=4")
    assert again.returncode == 0 and "Already there" in again.stdout
    assert path.stat().st_mtime_ns == stamp

    forced = command(*GLYPHS, "wbits=4", "abits=4", "force=true")
    assert forced.returncode == 0 and path.stat().st_mtime_ns > stamp
    repeated = record.read(path)
    for key in ("config_hash", "metrics", "layers"):  # one seed, one result, bit for bit
        assert repeated[key] == written[key]


def test_a_sweep_runs_every_combination(command, tmp_path):
    done = command("-m", *GLYPHS, "method=bitsplit,tflite", "wbits=3,8", "abits=32")
    assert done.returncode == 0, done.stderr
    found = [json.loads(path.read_text()) for path in records(tmp_path)]
    assert {(r["method"], r["wbits"]) for r in found} == {(m, b) for m in ("bitsplit", "tflite") for b in (3, 8)}
    by_cell = {(r["method"], r["wbits"]): r["metrics"]["quantized"]["logits_snr_db"] for r in found}
    assert by_cell["tflite", 8] > by_cell["tflite", 3]
    assert by_cell["bitsplit", 8] > by_cell["bitsplit", 3]


def test_floating_point_bits_return_the_same_network(command, tmp_path):
    done = command(*GLYPHS, "wbits=32", "abits=32", "batch_norm.mode=none")
    assert done.returncode == 0, done.stderr
    metrics = json.loads(records(tmp_path)[0].read_text())["metrics"]
    assert metrics["quantized"] == metrics["fp32"]


def test_imagenet_layout_with_a_damaged_image(command, tmp_path, imagenet_root, mobilenet):
    root = tmp_path / "copy"
    shutil.copytree(imagenet_root, root)
    damaged = [root / split / "n02123045" / "1.jpg" for split in ("train", "val")]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:300])
    arguments = ["data=imagenet", f"data.root={root}", *mobilenet, *SMALL, "calibration.gram_batches=3"]
    for force in ("false", "true"):  # at first statistics are measured, then they are kept
        done = command(*arguments, "wbits=8", "abits=8", "method=tflite", f"force={force}")
        assert done.returncode == 0, done.stderr
        assert all(str(path) in done.stderr for path in damaged) and "skipped" in done.stdout
        (path,) = records(tmp_path)
        assert path.parts[-3] == "imagenet_12"
        run = json.loads(path.read_text())
        metrics = run["metrics"]["quantized"]
        assert (metrics["images"], metrics["skipped"], run["data"]["calibration_images"]) == (11, 1, 23)


def test_a_folder_of_unlabelled_images_has_agreement_but_no_accuracy(command, tmp_path, imagenet_root, mobilenet):
    arguments = ["data=folder", f"data.root={imagenet_root / 'val'}", *mobilenet, *SMALL]
    done = command(*arguments, "wbits=8", "abits=32", "method=tflite")
    assert done.returncode == 0, done.stderr
    metrics = json.loads(records(tmp_path)[0].read_text())["metrics"]["quantized"]
    assert metrics["top1"] is None and metrics["agreement"] >= 90 and metrics["logits_snr_db"] > 20
    assert "top-1" not in done.stdout


def test_help_names_the_choices(command):
    done = command("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in methods.names()) and "python run.py -m" in done.stdout
    (root,) = [line for line in done.stdout.splitlines() if "data.root=PATH  " in line]
    with_root = {path.stem for path in (ROOT / "conf" / "data").glob("*.yaml") if "\nroot:" in path.read_text()}
    assert set(re.findall(r"\w+", root.partition("for data=")[2])) - {"and"} == with_root


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["model=resnet19"], "resnet18"),
        (["method=magic"], "tflite"),
        (["data=cifar"], "glyphs"),
        (["wbits=1"], "wbits must be an integer from 2 to 8"),
        (["abits=9"], "abits must be an integer from 2 to 8"),
        (["wbits=four"], "wbits must be an integer from 2 to 8"),
        (["seed=-1"], "seed"),
        (["speed=3"], "speed"),
        (["batch_norm.mode=maybe"], "reestimate"),
        (["device=cuda:7"], "device=cpu"),
        (["data=imagenet"], "IMAGENET_ROOT"),
        (["data=imagenet", "data.root=no/such/folder"], "no/such/folder"),
        (["data=folder"], "data.root"),
        (["data=folder", "data.root=conf"], "holds no images"),
        (["data=imagenet", "data.root=tests"], "train/<wnid>"),
        (["data=glyphs", "model.weights=README.md"], "state dict"),
        (["data=glyphs", "model.weights=nowhere.pth"], "not a file"),
        (["model=efficientnet_lite0", "data=glyphs"], "ImageNet network"),
        (["data=glyphs", "layer_bits={1:[8,8]}"], "no layer's name matches '1'"),
        (["data=glyphs", "data.validation_images=99999999"], "must be a whole number in 1..10000"),
        (["data=glyphs", "calibration.batch_size=40000"], "lower calibration.batch_size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(command, tmp_path, arguments, says):
    done = command(*arguments)
    assert_refused(done, says)
    assert not records(tmp_path)


def assert_refused(done: subprocess.CompletedProcess, says: str) -> None:
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ") and says in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_weights_that_cannot_be_downloaded_say_where_to_put_them(command, tmp_path, imagenet_root):
    # A proxy on a closed local port stands for a machine without a network.
    closed = {"https_proxy": "http://127.0.0.1:9", "TORCH_HOME": str(tmp_path / "torch")}
    done = command("data=imagenet", f"data.root={imagenet_root}", *SMALL, **closed)
    assert_refused(done, "resnet18-f37072fd.pth")
    assert "model.weights=FILE" in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_imagenette_that_cannot_be_downloaded_leaves_nothing_behind(command, tmp_path, resnet18_weights):
    closed = {"https_proxy": "http://127.0.0.1:9"}
    root = tmp_path / "imagenette"
    done = command("data=imagenette", f"data.root={root}", f"model.weights={resnet18_weights}", **closed)
    assert_refused(done, "imagenette2-320.tgz")
    assert not list(root.iterdir())


def test_weights_of_another_network_and_broken_ones(command, tmp_path, resnet18_weights):
    assert_refused(command("data=glyphs", f"model.weights={resnet18_weights}"), "another network")
    whole = tmp_path / "whole.pth"
    torch.save(torch.nn.Linear(2, 2), whole)
    assert_refused(command("data=glyphs", f"model.weights={whole}"), "state dict")

    state = narrow_classifier("resnet18", 100).state_dict()
    state["layer1.0.conv1.weight"][0] = float("nan")
    nan = tmp_path / "nan.pth"
    torch.save(state, nan)
    assert_refused(command("data=glyphs", f"model.weights={nan}"), "NaN")


def test_a_network_that_overflows_is_refused(command, tmp_path):

    state = narrow_classifier("resnet18", 100).state_dict()
    state["layer1.0.bn1.weight"][:] = 3e38
    path = tmp_path / "huge.pth"
    torch.save(state, path)
    assert_refused(command(*GLYPHS, f"model.weights={path}"), "NaN or infinity")
    assert not records(tmp_path)


def test_fewer_images_than_a_calibration_batch(command, tmp_path, imagenet_root, resnet18_weights):
    arguments = ["data=imagenet", f"data.root={imagenet_root}", f"model.weights={resnet18_weights}"]
    assert_refused(command(*arguments), "at least one batch of 64 images and there are 24")
    assert not records(tmp_path)


def test_interrupt_leaves_nothing_behind(tmp_path):
    line = [sys.executable, "run.py", f"results={tmp_path / 'results'}", "data=glyphs", "calibration.gram_batches=400"]
    # Python leaves interrupts ignored where it starts so, as below a runner in the background of a script.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    time.sleep(12)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr and "interrupted" in stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
