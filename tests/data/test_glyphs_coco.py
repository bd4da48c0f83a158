"""The embedded detection data set: pure scenes, exact boxes and masks, COCO's format, and a cache that never lies."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from bitsplit.data import glyphs_coco
from bitsplit.data.glyphs_coco import drawn_scenes, glyphs_coco_folder, run_lengths
from bitsplit.data.scene_drawing import CATEGORIES, _fits, box, draw_scene
from bitsplit.errors import InputError

SCENES = 24  # enough for every category to occur
MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12))


@pytest.fixture(autouse=True)
def another_process():
    """Each test looks at the files anew, as a process does at its first use."""
    glyphs_coco._intact_scenes.cache_clear()


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory) -> Path:
    """Cache with the first scenes of `val`."""
    folder = tmp_path_factory.mktemp("cache")
    drawn_scenes("val", SCENES, folder)
    return folder


@pytest.fixture(scope="module")
def annotations(cache_dir: Path) -> dict:
    return json.loads((drawn_scenes("val", SCENES, cache_dir) / "annotations.json").read_text())


def _decoded(segmentation: dict) -> np.ndarray:
    """Mask of an uncompressed encoding, pixel by pixel as COCO describes it."""
    height, width = segmentation["size"]
    mask, place = np.zeros((height, width), dtype=bool), 0
    for number, count in enumerate(segmentation["counts"]):
        for pixel in range(place, place + count):
            mask[pixel % height, pixel // height] = number % 2
        place += count
    assert place == height * width
    return mask


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_scene_is_a_pure_function_of_split_and_index():
    wanted = [("val", 3), ("train", 123456), ("train", 0)]
    first = [draw_scene(*scene) for scene in wanted]
    np.random.seed(1)
    again = [draw_scene(*scene) for scene in reversed(wanted)][::-1]
    for (image, instances), (same, equal) in zip(first, again, strict=True):
        np.testing.assert_array_equal(image, same)
        assert [instance.category for instance in instances] == [instance.category for instance in equal]
        np.testing.assert_array_equal([one.mask for one in instances], [one.mask for one in equal])


def test_scenes_differ_within_and_between_splits():
    assert len({draw_scene(split, index)[0].tobytes() for split in ("train", "val") for index in range(10)}) == 20


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.sampled_from(["train", "val"]), st.integers(0, 10_000))
def test_what_holds_in_every_scene(split, index):
    image, instances = draw_scene(split, index)
    assert image.shape == (192, 192, 3) and image.dtype == np.uint8
    assert 3 <= len(instances) <= 12
    masks = np.stack([instance.mask for instance in instances])
    assert masks.shape[1:] == (192, 192) and masks.dtype == bool
    assert masks.sum(axis=0).max() == 1  # every pixel is of one character at most
    assert masks.sum(axis=(1, 2)).min() > 50
    assert all(0 <= instance.category < len(CATEGORIES) for instance in instances)
    assert not masks[:, [0, -1]].any() and not masks[:, :, [0, -1]].any()  # none is cut off by the border


def test_a_character_stands_out_from_what_is_around_it():
    for index in range(5):
        image, instances = draw_scene("val", index)
        luminance = image @ [0.299, 0.587, 0.114] / 255
        ground = np.median(luminance[~np.any([instance.mask for instance in instances], axis=0)])
        for instance in instances:
            assert abs(np.median(luminance[instance.mask]) - ground) > 0.15


def test_characters_cover_each_other_a_little_at_most():
    def square(left: int) -> np.ndarray:
        ink = np.zeros((10, 40), dtype=bool)
        ink[:, left : left + 10] = True
        return ink

    before = square(0)
    assert _fits(square(20), [], []) and _fits(square(20), [before], [before])
    assert _fits(square(8), [before], [before & ~square(8)])
    assert not _fits(square(7), [before], [before & ~square(7)])
    # Apart from the new one, but with four or five of their ten columns under others.
    assert _fits(square(20), [before], [before & ~square(6)])
    assert not _fits(square(20), [before], [before & ~square(5)])


@settings(deadline=None, derandomize=True)
@given(MASKS)
def test_box_is_tight(mask):
    mask[0, -1] = True
    x, y, width, height = box(mask)
    inside = mask[y : y + height, x : x + width]
    assert inside.shape == (height, width) and inside.sum() == mask.sum()
    assert inside[[0, -1]].any(axis=1).all() and inside[:, [0, -1]].any(axis=0).all()


@settings(deadline=None, derandomize=True)
@given(MASKS)
def test_run_lengths_are_decoded_to_the_mask(mask):
    encoded = run_lengths(mask)
    np.testing.assert_array_equal(_decoded(encoded), mask)
    assert all(count > 0 for count in encoded["counts"][1:])


def test_files_hold_what_is_drawn(cache_dir, annotations):
    folder = drawn_scenes("val", SCENES, cache_dir)
    assert [image["id"] for image in annotations["images"]] == list(range(SCENES))
    assert sorted(path.name for path in (folder / "images").iterdir()) == [
        image["file_name"] for image in annotations["images"]
    ]
    for image in annotations["images"][:: SCENES - 1]:
        pixels, instances = draw_scene("val", image["id"])
        np.testing.assert_array_equal(Image.open(folder / "images" / image["file_name"]), pixels)
        assert (image["height"], image["width"]) == pixels.shape[:2]
        found = [one for one in annotations["annotations"] if one["image_id"] == image["id"]]
        for annotation, instance in zip(found, instances, strict=True):
            mask = _decoded(annotation["segmentation"])
            np.testing.assert_array_equal(mask, instance.mask)
            assert annotation["bbox"] == list(box(mask)) and annotation["area"] == mask.sum()
            assert annotation["iscrowd"] == 0
            assert annotation["category_id"] == instance.category + 1


def test_ids_and_categories(annotations):
    found = annotations["annotations"]
    assert [annotation["id"] for annotation in found] == list(range(1, len(found) + 1))
    assert annotations["categories"] == [{"id": 1 + i, "name": name} for i, name in enumerate(CATEGORIES)]
    assert len(set(CATEGORIES)) == 20
    assert {annotation["category_id"] for annotation in found} == set(range(1, 21))


def test_pycocotools_reads_it(cache_dir):
    coco = pytest.importorskip("pycocotools.coco").COCO(drawn_scenes("val", SCENES, cache_dir) / "annotations.json")
    assert len(coco.getImgIds()) == SCENES and len(coco.getCatIds(catNms=list(CATEGORIES))) == 20
    for index in (0, SCENES - 1):
        found = coco.loadAnns(coco.getAnnIds(imgIds=index))
        for annotation, instance in zip(found, draw_scene("val", index)[1], strict=True):
            np.testing.assert_array_equal(coco.annToMask(annotation), instance.mask)


def test_written_once_and_byte_for_byte_the_same(cache_dir, tmp_path, monkeypatch, capfd):
    folder = drawn_scenes("val", SCENES, cache_dir)
    assert list(cache_dir.iterdir()) == [glyphs_coco_folder(cache_dir)]
    assert list(folder.parent.iterdir()) == [folder]
    assert _content(drawn_scenes("val", SCENES, tmp_path)) == _content(folder)
    capfd.readouterr()
    monkeypatch.delattr(glyphs_coco, "_write_dataset")
    glyphs_coco._intact_scenes.cache_clear()
    assert drawn_scenes("val", SCENES, cache_dir) == folder
    assert capfd.readouterr().err == ""  # no progress bar where nothing is drawn


def test_splits_and_numbers_of_scenes_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("BITSPLIT_CACHE", str(tmp_path))
    folders = [drawn_scenes("train", 1), drawn_scenes("val", 1), drawn_scenes("val", 2)]
    assert sorted(glyphs_coco_folder(tmp_path).iterdir()) == folders
    images = [(folder / "images" / "000000.png").read_bytes() for folder in folders]
    assert images[0] != images[1] == images[2]
    with pytest.raises(ValueError, match="no split 'test'"):
        drawn_scenes("test")


def test_whole_splits_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr(glyphs_coco, "_write_dataset", lambda folder, split, scenes: folder.mkdir())
    for split, scenes in (("train", 3000), ("val", 500)):
        assert drawn_scenes(split, cache_dir=tmp_path).name.startswith(f"{split}-{scenes}-")


@pytest.mark.parametrize("where", ["data.drawn.tqdm.update", "data.glyphs_coco.json.dumps", "files.os.rename"])
def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch, where):
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"bitsplit.{where}", interrupted)
        with pytest.raises(KeyboardInterrupt):
            drawn_scenes("val", 2, tmp_path)
    assert list(glyphs_coco_folder(tmp_path).iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the process to kill is forked")
def test_what_a_killed_process_leaves_is_never_read_and_goes(tmp_path, monkeypatch):
    def killed(*_paths):
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr("bitsplit.files.os.rename", killed)
        process = multiprocessing.get_context("fork").Process(target=drawn_scenes, args=("val", 2, tmp_path))
        process.start()
        process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (leftover,) = glyphs_coco_folder(tmp_path).iterdir()
    folder = drawn_scenes("val", 2, tmp_path)
    assert folder != leftover and list(glyphs_coco_folder(tmp_path).iterdir()) == [folder]
    assert len(_content(folder)) == 3


def test_the_slower_of_two_processes_takes_the_folder_of_the_faster(tmp_path, monkeypatch):
    rename, faster = os.rename, []

    def overtaken(written, folder):
        with monkeypatch.context() as patch:
            patch.setattr("bitsplit.files.os.rename", rename)
            faster.append(drawn_scenes("val", 2, tmp_path).stat().st_ino)
        rename(written, folder)

    monkeypatch.setattr("bitsplit.files.os.rename", overtaken)
    folder = drawn_scenes("val", 2, tmp_path)
    assert faster == [folder.stat().st_ino]
    assert list(glyphs_coco_folder(tmp_path).iterdir()) == [folder]


def test_a_folder_that_cannot_be_put_in_place_is_an_error(tmp_path, monkeypatch):
    def refused(*_paths):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("bitsplit.files.os.rename", refused)
    with pytest.raises(InputError, match="cannot be written .* BITSPLIT_CACHE=FOLDER"):
        drawn_scenes("val", 1, tmp_path)
    assert list(glyphs_coco_folder(tmp_path).iterdir()) == []
