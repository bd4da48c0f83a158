"""COCO folders: what is read, and one line for whatever is wrong with them."""

import json

import pytest
from scenes import write_coco

from bitsplit.data.coco import Coco, GlyphsCoco
from bitsplit.errors import InputError


@pytest.fixture
def root(tmp_path):
    return write_coco(tmp_path / "coco", scenes=4)


def annotations(root):
    return root / "annotations" / "instances_val2017.json"


def change(root, **parts):
    path = annotations(root)
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))


def test_a_subset_says_how_large_it_is(root):
    data = Coco(str(root))
    assert (data.name, data.title) == ("coco_4", "COCO 2017 validation, 4 images")
    assert len(data.scenes("train")) == 4 and len(data.scenes("val").categories) == 20


def test_a_broken_annotation_file(root):
    text = annotations(root).read_text()
    annotations(root).write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match="is not a COCO annotation file"):
        len(Coco(str(root)).scenes("val"))


BOX = {"id": 7, "image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12}


def without(entry, key):
    return {name: value for name, value in entry.items() if name != key}


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"categories": []}, "names no categories"),
        ({"images": []}, "names no images"),
        ({"annotations": []}, "names no annotations"),
        ({"annotations": [BOX | {"image_id": 99}]}, "names no annotations of its images"),
        ({"annotations": [BOX | {"category_id": 99}]}, "annotation 7 .* has no category of the file's list"),
        ({"annotations": [BOX, BOX]}, "has two annotations 7"),
        *(
            ({"annotations": [without(BOX, key)]}, f"not a COCO annotation file: one of its annotations has no '{key}'")
            for key in BOX
        ),
        ({"images": [{"id": 0, "file_name": "000000.png", "width": 192}]}, "one of its images has no 'height'"),
        ({"images": 3}, "is not a COCO annotation file: TypeError"),
    ],
)
def test_annotations_that_make_no_sense(root, parts, message):
    change(root, **parts)
    with pytest.raises(InputError, match=message):
        len(Coco(str(root)).scenes("val"))


def test_calibration_needs_no_annotations(root):
    path = root / "annotations" / "instances_train2017.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    assert len(Coco(str(root)).scenes("train")) == 4


def test_missing_images_are_counted_and_the_first_is_named(root):
    for index in (1, 3):
        (root / "val2017" / f"{index:06d}.png").unlink()
    with pytest.raises(InputError, match="2 of 4 images are missing, .*000001.png first"):
        len(Coco(str(root)).scenes("val"))


def test_missing_folders(root, tmp_path):
    with pytest.raises(InputError, match="data.root=PATH"):
        Coco().scenes("val")
    with pytest.raises(InputError, match="is not a folder"):
        Coco(str(tmp_path / "nowhere")).scenes("val")
    annotations(root).unlink()
    with pytest.raises(InputError, match="instances_val2017.json is missing"):
        len(Coco(str(root)).scenes("val"))


def test_the_embedded_scenes_say_what_they_are():
    assert GlyphsCoco().title == "glyphs_coco validation, 500 scenes"
