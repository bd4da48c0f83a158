"""Tests of detection run where its extra is installed; fixtures on a few drawn scenes."""

from importlib.util import find_spec

import pytest
import torch
from scenes import write_coco

HERE = "tests/detection/"


def pytest_collection_modifyitems(items):
    missing = find_spec("mmdet") is None
    for item in (item for item in items if HERE in item.nodeid):
        item.add_marker(pytest.mark.detection)
        if missing:
            item.add_marker(pytest.mark.skip(reason="needs the extra `detection`: make setup-detection"))


@pytest.fixture(scope="session")
def coco_root(tmp_path_factory):
    """A COCO folder of 8 training and 8 validation scenes."""
    return write_coco(tmp_path_factory.mktemp("scenes") / "coco", scenes=8)


@pytest.fixture(scope="session")
def config_of(tmp_path_factory):
    """File with the configuration of a shipped network, as a user's own."""
    from bitsplit.detectors import GLYPHS_CATEGORIES, GLYPHS_SIDE
    from bitsplit.narrow_detectors import narrow

    def written(name: str):
        path = tmp_path_factory.mktemp("configs") / f"{name}.py"
        narrow(name, GLYPHS_CATEGORIES, GLYPHS_SIDE).dump(path)
        return path

    return written


@pytest.fixture
def detection(coco_root, config_of):
    """The task of a shipped network on the few scenes."""
    from bitsplit.data.coco import Coco
    from bitsplit.detectors import MaskRCNN, RetinaNet
    from bitsplit.models import shipped
    from bitsplit.tasks import task_of

    def made(name: str, **options):
        source = {"retinanet": RetinaNet, "mask_rcnn": MaskRCNN}[name]
        weights = str(shipped(f"{name}_glyphs.safetensors"))
        detector = source(config=str(config_of(name)), weights=weights, **options)
        return task_of(detector, Coco(str(coco_root)), torch.device("cpu"))

    return made
