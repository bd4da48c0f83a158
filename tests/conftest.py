"""Fixtures shared by the tests: whole commands through a subprocess, small image folders, real data where it is."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from forked_commands import Ended, ForkedCommands
from hydra import compose, initialize_config_dir
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

# Just enough data for a whole run in a few seconds.
SMALL = [
    "calibration.batch_size=8",
    "calibration.gram_batches=2",
    "calibration.scale_batches=2",
    "calibration.patches=200",
    "calibration.samples=2000",
    "batch_norm.batches=2",
]


def composed(*overrides: str, hydra: bool = False):
    """The configuration that `python run.py OVERRIDES` has; with `hydra` its own part as well."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=hydra)


def environment(**variables: str) -> dict[str, str]:
    """Of a command under test: one thread, for the test runner fills the cores already, no data of the user's, and
    no trace of the make that runs the tests."""
    foreign = ("IMAGENET_ROOT", "COCO_ROOT", "MAKELEVEL", "MAKEFLAGS", "MFLAGS")
    given = {name: value for name, value in os.environ.items() if name not in foreign}
    return given | variables | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def trials(count: int) -> int:
    """How often a test tries its luck: `count`, or with BITSPLIT_TEST_TRIALS=10 ten times as often."""
    return count * int(os.environ.get("BITSPLIT_TEST_TRIALS", "1"))


def experiment(name: str, *arguments: str) -> subprocess.CompletedProcess:
    """`python experiments/NAME.py ARGUMENTS`, finished."""
    line = [sys.executable, f"experiments/{name}.py", *arguments]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment())


def pytest_collection_modifyitems(items):
    missing = find_spec("mmdet") is None
    for item in items:
        if item.path.suffix == ".ipynb":  # takes as long as whole commands
            item.add_marker(pytest.mark.slow)
        if "tests/detection/" in item.nodeid or item.path.name == "detection.ipynb":
            item.add_marker(pytest.mark.detection)
            if missing:
                item.add_marker(pytest.mark.skip(reason="needs the extra `detection`: make setup-detection"))
    items.sort(key=lambda item: "slow" not in item.keywords)  # so that no core waits for the longest at the end


class OneThread:
    """One thread a test where the test runner fills the cores already: more only wait for each other.

    A plugin of its own, for the hooks of this file reach no notebook.
    """

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        torch.set_num_threads(1)
        numba.set_num_threads(1)
        with pytest.MonkeyPatch.context() as patch:
            if item.path.suffix == ".ipynb":  # runs in a process of its own
                patch.setenv("OMP_NUM_THREADS", "1")
                patch.setenv("NUMBA_NUM_THREADS", "1")
            return (yield)


def pytest_configure(config):
    if "PYTEST_XDIST_WORKER" in os.environ:
        config.pluginmanager.register(OneThread())


@pytest.fixture(scope="session")
def forked_commands():
    with ForkedCommands(environment()) as commands:
        yield commands


@pytest.fixture
def command(tmp_path, forked_commands):
    """Runs `python run.py ARGUMENTS` with its records under tmp_path/results; returns how it ended."""

    def run(*arguments: str, **variables: str) -> Ended:
        line = [*arguments, f"results={tmp_path / 'results'}"]
        if "--help" not in arguments:
            line.append("logger=none")
        return forked_commands.run(line, ROOT, **variables)

    return run


@pytest.fixture(scope="session")
def imagenet_root(tmp_path_factory) -> Path:
    """A tiny ImageNet: 3 classes × 8 training and 4 validation images of noise."""
    root = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for wnid in ("n01440764", "n02123045", "n13133613"):
            folder = root / split / wnid
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (72, 80, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((260, 240)).save(folder / f"{index}.jpg")
    return root


@pytest.fixture(scope="session")
def resnet18_weights(tmp_path_factory) -> Path:
    """A state dict of torchvision's ResNet-18 with random weights."""
    from bitsplit.vision import torchvision

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


@pytest.fixture(scope="session")
def mobilenet(tmp_path_factory) -> list[str]:
    """Arguments that choose the fastest of torchvision's networks at 224×224, with random weights."""
    from bitsplit.vision import torchvision

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("mobilenet") / "weights.pth"
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), path)
    return ["model=mobilenet_v3_small", f"model.weights={path}"]


@pytest.fixture
def network():
    """The small residual network of `small_networks`, as if trained."""
    from small_networks import Residual, lively

    return lively(Residual())


@pytest.fixture(scope="session")
def coco_root(tmp_path_factory):
    """A COCO folder of 8 training and 8 validation scenes."""
    from scenes import write_coco

    return write_coco(tmp_path_factory.mktemp("scenes") / "coco", scenes=8)


@pytest.fixture(scope="session")
def config_of(tmp_path_factory):
    """File with the configuration of a shipped network, as a user's own."""
    from bitsplit.networks.detectors import GLYPHS_CATEGORIES, GLYPHS_SIDE
    from bitsplit.networks.narrow_detectors import narrow_detector

    def written(name: str):
        path = tmp_path_factory.mktemp("configs") / f"{name}.py"
        narrow_detector(name, GLYPHS_CATEGORIES, GLYPHS_SIDE).dump(path)
        return path

    return written


@pytest.fixture(scope="session")
def detection(coco_root, config_of):
    """The task of a shipped network on the few scenes."""
    from bitsplit.data.coco import Coco
    from bitsplit.networks.detectors import Detector
    from bitsplit.networks.weights import shipped
    from bitsplit.tasks import task_of

    def made(name: str, **options):
        weights = str(shipped(f"{name}_glyphs.safetensors"))
        detector = Detector(name, config=str(config_of(name)), weights=weights, **options)
        return task_of(detector, Coco(str(coco_root)), torch.device("cpu"))

    return made
