"""What a user with ImageNet, Imagenette or COCO does first, on files that look exactly like theirs, only smaller."""

import functools
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, environment
from PIL import Image
from scipy.io import savemat

from bitsplit.data.imagenet import Imagenette
from bitsplit.data.images import Preprocessing
from bitsplit.errors import InputError
from bitsplit.networks.weights import download
from bitsplit.report import record
from bitsplit.vision import torchvision

WNIDS = ["n01440764", "n02102040", "n02979186"]
NETWORK = ["model=resnet18", "method=tflite"]


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def jpeg(seed: int) -> bytes:
    """As ImageNet's: of any size, some of them without colours."""
    random = np.random.default_rng(seed)
    shape = (240, 260) if seed % 4 == 0 else (250, 230, 3)
    buffer = io.BytesIO()
    Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            add(archive, name, content)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> Path:
    """The three archives of ILSVRC 2012, unpacked by torchvision's own class; its checksums are those of ours."""
    root = tmp_path_factory.mktemp("ilsvrc")
    train = {f"{w}.tar": tar_of({f"{w}_{i}.JPEG": jpeg(9 * k + i) for i in range(22)}) for k, w in enumerate(WNIDS)}
    val = {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(100 + i) for i in range(1, 9)}
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(i, wnid, f"word {i}, other word", "gloss", 0) for i, wnid in enumerate(WNIDS, 1)]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array([*rows, (4, "n00001740", "entity", "all", 3)], dtype=kinds).reshape(-1, 1)})
    devkit = {
        "ILSVRC2012_devkit_t12/data/meta.mat": meta.getvalue(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": b"2\n1\n3\n3\n2\n1\n1\n2\n",
    }
    contents = {"train": tar_of(train), "val": tar_of(val), "devkit": tar_of(devkit, "w:gz")}
    module = sys.modules[torchvision.datasets.ImageNet.__module__]
    with pytest.MonkeyPatch.context() as patch:
        for part, content in contents.items():
            name = module.ARCHIVE_META[part][0]
            (root / name).write_bytes(content)
            patch.setitem(module.ARCHIVE_META, part, (name, hashlib.md5(content).hexdigest()))
        for split in ("train", "val"):
            torchvision.datasets.ImageNet(root, split)
    return root


@pytest.mark.slow
def test_torchvisions_imagenet_folder_is_taken_as_it_is(command, imagenet, resnet18_weights, tmp_path):
    assert {"train", "val", "meta.bin", "ILSVRC2012_img_val.tar"} <= {path.name for path in imagenet.iterdir()}
    done = command(*NETWORK, *SMALL, "data=imagenet", f"data.root={imagenet}", f"model.weights={resnet18_weights}")
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "results").rglob("*.json")
    run = record.read(path)
    assert path.parts[-3] == "imagenet_8" and run["data"]["calibration_images"] == 16
    assert run["metrics"]["quantized"]["images"] == 8 and run["metrics"]["quantized"]["skipped"] == 0


def test_a_folder_of_flat_validation_images_says_what_to_do(command, imagenet, resnet18_weights, tmp_path):
    """The validation archive unpacked by hand: 50,000 files side by side."""
    shutil.copytree(imagenet / "train", tmp_path / "flat" / "train")
    for path in (imagenet / "val").rglob("*.JPEG"):
        (tmp_path / "flat" / "val").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "flat" / "val")
    root = f"data.root={tmp_path / 'flat'}"
    done = command(*NETWORK, "data=imagenet", root, f"model.weights={resnet18_weights}")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "sort its images into them first" in done.stderr


@pytest.fixture
def served(tmp_path):
    """A local HTTP server of the files in a folder: the folder, its address, and the requests so far."""
    folder, requests = tmp_path / "served", []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, _, *arguments) -> None:
            requests.append(arguments[0])

    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()


def test_imagenette_comes_through_torchvisions_own_class(served, tmp_path, monkeypatch):
    folder, address, requests = served
    images = {
        f"imagenette2-320/{split}/{w}/{i}.JPEG": jpeg(i) for split in ("train", "val") for w in WNIDS for i in (1, 2)
    }
    content = tar_of(images, "w:gz")
    (folder / "imagenette2-320.tgz").write_bytes(content)
    source = f"{address}/imagenette2-320.tgz", hashlib.md5(content).hexdigest()
    monkeypatch.setitem(torchvision.datasets.Imagenette._ARCHIVES, "320px", source)
    root = tmp_path / "not there yet" / "imagenette"
    downloads = []
    for _ in range(2):
        data = Imagenette(str(root))
        (images, labels), *_ = data.validation(Preprocessing(), 32)
        assert images.shape == (6, 3, 224, 224) and sorted(set(labels.tolist())) == [0, 217, 482]
        (images, _), *_ = data.calibration(Preprocessing(), 2, 3, seed=0)
        assert images.shape == (2, 3, 224, 224)
        downloads.append(len(requests))
    assert downloads[0] == downloads[1] > 0 and [path.name for path in root.iterdir()] == ["imagenette2-320"]


def test_weights_are_downloaded_once_into_torchs_cache(served, resnet18_weights, tmp_path, monkeypatch):
    folder, address, requests = served
    digest = hashlib.sha256(resnet18_weights.read_bytes()).hexdigest()
    name = f"resnet18-{digest[:8]}.pth"
    shutil.copy(resnet18_weights, folder / name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    paths = {download(f"{address}/{name}") for _ in range(2)}
    assert paths == {tmp_path / "torch" / "hub" / "checkpoints" / name} and len(requests) == 1
    (folder / "resnet18-00000000.pth").write_bytes(b"another file")
    with pytest.raises(InputError, match="could not be downloaded"):
        download(f"{address}/resnet18-00000000.pth")
    assert [path.name for path in (tmp_path / "torch" / "hub" / "checkpoints").iterdir()] == [name]


@pytest.fixture
def program(tmp_path):
    """A copy of the repository with this environment and no records, for targets that write into results/."""
    copy = tmp_path / "repository"
    for name in ("bitsplit", "conf", "experiments", "results/paper"):
        shutil.copytree(ROOT / name, copy / name)
    for name in ("Makefile", "run.py", "requirements.lock", "requirements-detection.lock", "pyproject.toml"):
        shutil.copy2(ROOT / name, copy)
    (copy / ".venv").symlink_to(Path(sys.prefix))
    return copy


def reproduce(program: Path, data: str, root: Path, *arguments: str) -> subprocess.CompletedProcess:
    made = ["-o", ".venv/.complete", "-o", ".venv/.detection"]  # by whoever runs the tests
    line = ["make", *made, "reproduce", f"DATA={data}", f"ROOT={root}", f"ARGS={' '.join(arguments)} logger=none"]
    return subprocess.run(line, capture_output=True, text=True, cwd=program, env=environment(), timeout=600)


@pytest.mark.slow
def test_make_reproduce_on_imagenet(program, imagenet, resnet18_weights):
    """Everything from the estimate to the comparison, of one cell: what needs other ones says so at its turn."""
    done = reproduce(program, "imagenet", imagenet, *NETWORK, f"model.weights={resnet18_weights}", "wbits=4", "abits=8")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 3 and all(
        re.match("error: no records for (table_both|figures|against_paper)", e) for e in errors
    )
    assert "cells without a record" in done.stdout and "1 cells run" in done.stdout
    folder = program / "results" / "imagenet_8"
    assert len(list((folder / "runs").iterdir())) == 2  # of Table 4, and of Table 4 on equal terms
    assert {"table4.md", "table4_equal.md", "table_weights.md", "runs.md"} <= {path.name for path in folder.iterdir()}


def model_zoo_checkpoint(path: Path) -> None:
    """As mmdet's model zoo has them: meta data, an optimizer, and the network's tensors under `state_dict`."""
    from safetensors.torch import load_file

    from bitsplit.networks.weights import shipped

    state = load_file(shipped("retinanet_glyphs.safetensors"))
    meta = {"mmdet_version": "3.0.0", "CLASSES": ("A", "B"), "epoch": 12, "config": "model = dict(type='RetinaNet')"}
    weight = next(values for values in state.values() if values.is_floating_point())
    optimizer = torch.optim.SGD([torch.nn.Parameter(weight)], lr=0.01, momentum=0.9).state_dict()
    torch.save({"meta": meta, "state_dict": state, "optimizer": optimizer}, path)


def make_crowds(annotations: Path) -> None:
    """Among COCO's annotations are crowds, whose outline is a run-length code, and images that have none."""
    facts = json.loads(annotations.read_text(encoding="utf-8"))
    facts["info"] = {"description": "COCO 2017 Dataset", "year": 2017}
    facts["licenses"] = [{"id": 1, "name": "Attribution", "url": ""}]
    first, last = facts["images"][0], facts["images"][-1]
    facts["annotations"] = [one for one in facts["annotations"] if one["image_id"] != last["id"]]
    height, width = first["height"], first["width"]
    crowd = {
        "id": 10**6,
        "image_id": first["id"],
        "category_id": facts["categories"][0]["id"],
        "iscrowd": 1,
        "bbox": [0, 0, width, 10],
        "area": 10 * width,
        "segmentation": {"size": [height, width], "counts": [0, 10 * height, (width - 10) * height]},
    }
    facts["annotations"].append(crowd)
    annotations.write_text(json.dumps(facts), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.detection
@pytest.mark.skipif(find_spec("mmdet") is None, reason="needs the extra `detection`: make setup-detection")
def test_make_reproduce_on_coco(program, config_of, tmp_path):
    from scenes import write_coco

    root = write_coco(tmp_path / "coco", scenes=8)
    for path in (root / "annotations").iterdir():
        make_crowds(path)
    model_zoo_checkpoint(tmp_path / "retinanet_r50_fpn_1x_coco.pth")
    network = [
        "model=retinanet",
        f"model.config={config_of('retinanet')}",
        f"model.weights={tmp_path / 'retinanet_r50_fpn_1x_coco.pth'}",
    ]
    done = reproduce(program, "coco", root, *network, "method=tflite", "wbits=4", "abits=8")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = program / "results" / "coco_8"
    (path,) = (folder / "runs").iterdir()
    metrics = record.read(path)["metrics"]
    assert metrics["fp32"]["images"] == 8 and metrics["fp32"]["bbox_ap"] > 20
    assert {"table5.md", "runs.md"} <= {path.name for path in folder.iterdir()}
    assert not [path for path in program.rglob("*.tmp")] and os.listdir(program / "results")
