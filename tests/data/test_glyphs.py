"""The embedded data set: pure drawing, distinct classes, and a cache that never lies."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bitsplit.data import glyphs
from bitsplit.data.glyph_drawing import CLASSES, FONTS, draw_glyph, glyph, label

ROOT = Path(__file__).resolve().parents[2]
DRAWN_HERE = [("val", 5), ("train", 123456), ("train", 0), ("val", 9999)]


def _digest(images: list[tuple[str, int]]) -> str:
    return hashlib.sha256(b"".join(draw_glyph(*image).tobytes() for image in images)).hexdigest()


def _python(script: str, cache_dir: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "BITSPLIT_CACHE": str(cache_dir)}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=60
    )


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory) -> Path:
    """Cache with one shard of `val`, drawn by a script without a `__main__` guard."""
    folder = tmp_path_factory.mktemp("cache")
    script = (
        "from bitsplit.data.glyphs import load_glyphs; images, labels = load_glyphs('val', 10); print(images.shape)"
    )
    finished = _python(script, folder)
    assert finished.stdout == "(10, 64, 64, 3)\n"
    return folder


@pytest.fixture
def shard(cache_dir: Path) -> Path:
    (path,) = glyphs.glyphs_folder(cache_dir).glob("val-00000-*")
    return path


def test_a_image_is_a_pure_function_of_split_and_index(tmp_path):
    first = [draw_glyph(*image) for image in DRAWN_HERE]
    np.random.seed(1)
    again = [draw_glyph(*image) for image in reversed(DRAWN_HERE)][::-1]
    np.testing.assert_array_equal(first, again)
    script = f"from tests.data.test_glyphs import _digest; print(_digest({DRAWN_HERE[::-1]}))"
    assert _python(script, tmp_path).stdout.strip() == _digest(DRAWN_HERE[::-1])


def test_shape_type_and_contrast():
    images = np.stack([draw_glyph("train", index) for index in range(200)])
    assert images.shape == (200, 64, 64, 3) and images.dtype == np.uint8
    assert (np.ptp(images, axis=(1, 2, 3)) > 64).all()


def test_images_differ_within_and_between_splits():
    hashes = {draw_glyph(split, index).tobytes() for split in ("train", "val") for index in range(300)}
    assert len(hashes) == 600


@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_are_balanced_and_in_random_order(split):
    labels = np.array([label(split, index) for index in range(1000)])
    np.testing.assert_array_equal(np.bincount(labels, minlength=100), 10)
    assert (labels[:100] != labels[100:200]).any()
    assert [label("train", index) for index in range(100)] != [label("val", index) for index in range(100)]


def test_unknown_split_and_negative_index_are_refused():
    with pytest.raises(ValueError):
        draw_glyph("test", 0)
    with pytest.raises(ValueError):
        draw_glyph("train", -1)


@pytest.mark.parametrize("font", FONTS)
def test_classes_are_drawn_and_distinct_in_every_font(font):
    assert len(CLASSES) == len(set(CLASSES)) == 100
    missing = np.asarray(glyph("\U0010ffff", font))  # the box that stands for a character the font lacks
    shapes = []
    for character in CLASSES:
        mask = glyph(character, font)
        ink = np.asarray(mask)
        assert (ink > 127).sum() > 50, character
        assert ink.shape != missing.shape or (ink != missing).any(), character
        shapes.append(np.asarray(mask.resize((32, 32)), dtype=np.float32) / 255)  # blind to size and proportions
    flat = np.stack(shapes).reshape(100, -1)
    difference = np.abs(flat[:, None] - flat[None]).mean(axis=-1) + np.eye(100)
    a, b = np.unravel_index(difference.argmin(), difference.shape)
    assert difference.min() > 0.02, CLASSES[a] + CLASSES[b]


def test_cached_images_equal_the_drawing(cache_dir, shard, capfd):
    assert list(cache_dir.rglob("*.*")) == [shard]
    written = shard.stat().st_mtime_ns
    images, labels = glyphs.load_glyphs("val", 1999, cache_dir)
    assert images.shape == (1999, 64, 64, 3) and images.dtype == np.uint8 and labels.dtype == np.int64
    for index in (0, 99, 100, 1998):
        np.testing.assert_array_equal(images[index], draw_glyph("val", index))
        assert labels[index] == label("val", index)
    assert shard.stat().st_mtime_ns == written
    assert capfd.readouterr().err == ""  # no progress bar where nothing is drawn


def test_count_may_span_shards_and_be_zero(cache_dir):
    images, _ = glyphs.load_glyphs("val", glyphs.SHARD + 1, cache_dir)
    np.testing.assert_array_equal(images[-1], draw_glyph("val", glyphs.SHARD))
    assert len(glyphs.load_glyphs("val", 0, cache_dir)[0]) == 0


@pytest.mark.parametrize("damage", ["truncated", "flipped bit"])
def test_damaged_shard_is_redrawn(cache_dir, shard, damage):
    intact = shard.read_bytes()
    damaged = bytearray(intact)
    if damage == "truncated":
        del damaged[-1000:]
    else:
        damaged[len(intact) // 2] ^= 1
    shard.write_bytes(damaged)
    glyphs.load_glyphs("val", 1, cache_dir)
    assert shard.read_bytes() == intact


def test_half_written_file_is_never_read(cache_dir, shard, tmp_path):
    folder = glyphs.glyphs_folder(tmp_path)
    folder.mkdir(parents=True)
    stale = folder / f"{shard.stem}abc.tmp"
    stale.write_bytes(shard.read_bytes()[:1000])
    script = "from bitsplit.data.glyphs import load_glyphs; load_glyphs('val', 1)"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "BITSPLIT_CACHE": str(tmp_path)}
    both = [subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE) for _ in "ab"]
    assert [process.communicate(timeout=60) and process.returncode for process in both] == [0, 0]
    assert sorted(path.name for path in folder.iterdir()) == sorted([stale.name, shard.name])
    assert (folder / shard.name).read_bytes() == shard.read_bytes()


def test_cache_folder_is_named_after_the_drawing(tmp_path, monkeypatch):
    monkeypatch.setenv("BITSPLIT_CACHE", str(tmp_path))
    assert glyphs.glyphs_folder() == glyphs.glyphs_folder(tmp_path)
    assert glyphs.glyphs_folder().parent == tmp_path
