"""Decoded images on disk: what a pass reads is what the files hold, however often and by whichever process."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, environment

from bitsplit.data.imagenet import ImageNet
from bitsplit.data.images import ImageBatches, Preprocessing
from bitsplit.kept import computing_anew, trim

PREPROCESSING = Preprocessing()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The folder of decoded images in a cache of the test's own."""
    monkeypatch.setenv("BITSPLIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def root(imagenet_root, tmp_path) -> Path:
    return shutil.copytree(imagenet_root, tmp_path / "data")


def validation(root: Path, batch_size: int = 5) -> ImageBatches:
    return ImageNet(str(root)).validation(PREPROCESSING, batch_size)


def calibration(root: Path, seed: int = 0) -> ImageBatches:
    return ImageNet(str(root)).calibration(PREPROCESSING, 8, 2, seed)


def content(batches: ImageBatches) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def assert_equal(one: tuple, other: tuple) -> None:
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def spoil(batches: ImageBatches) -> None:
    """Makes all files but the first, which is looked at beforehand, others of the same size and time."""
    for path in batches.paths[1:]:
        facts = path.stat()
        path.write_bytes(bytes(facts.st_size))
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize("batches", [validation, calibration])
def test_files_are_decoded_once(cache, root, batches, capsys):
    first = batches(root)
    decoded = content(first)
    spoil(first)
    assert_equal(content(first), decoded)
    assert_equal(content(batches(root)), decoded)  # as another process has them
    assert len(list(cache.iterdir())) == 1  # neither a lock nor anything half-written
    assert capsys.readouterr().err == ""


def test_a_reader_that_knows_how_many_there_are_has_read_all(cache, root):
    batches = calibration(root)
    taken = list(itertools.islice(batches, len(batches)))
    spoil(batches)
    for (images, _), (again, _) in zip(taken, batches, strict=True):
        assert torch.equal(images, again)


def test_batches_of_any_size_read_the_same_images(cache, root):
    five, seven = validation(root, 5), validation(root, 7)
    decoded = content(five)
    spoil(five)
    assert_equal(content(seven), decoded)
    assert [len(labels) for _, labels in seven] == [7, 5]


def test_other_crops_and_files_are_decoded_anew(cache, root):
    content(calibration(root, seed=0)), content(calibration(root, seed=1)), content(validation(root))
    assert len(list(cache.iterdir())) == 3
    path = next((root / "val").rglob("*.jpg"))
    before = content(validation(root))
    shutil.copy(next((root / "train").rglob("*.jpg")), path)
    after = content(validation(root))
    assert sorted((a != b).any().item() for a, b in zip(before[0], after[0], strict=True)) == [False] * 11 + [True]


def test_a_file_that_cannot_be_read_may_be_readable_next_time(cache, root, capsys):
    path = sorted((root / "val").rglob("*.jpg"))[3]
    good, facts = path.read_bytes(), path.stat()
    path.write_bytes(bytes(len(good)))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert len(content(validation(root))[1]) == 11 and not list(cache.iterdir())
    path.write_bytes(good)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert len(content(validation(root))[1]) == 12
    assert capsys.readouterr().err.count("skipped") == 1


def test_a_reader_that_stops_leaves_nothing(cache, root):
    batches = iter(validation(root))
    next(batches)
    assert [path.suffix for path in cache.iterdir() if path.suffix != ".lock"] == [".tmp"]
    batches.close()
    assert not list(cache.iterdir())


def test_one_process_of_several_leaves_them(cache, root):
    first, second = validation(root), validation(root)
    reading = iter(first)
    begun = [next(reading)]
    decoded = content(second)  # does not wait, nor write the same once more
    assert len([path for path in cache.iterdir() if path.suffix == ".tmp"]) == 1
    images, labels = zip(*begun, *reading, strict=True)
    assert_equal((torch.cat(images), torch.cat(labels)), decoded)
    assert [path.suffix for path in cache.iterdir()] == [".images"]


def test_a_damaged_one_is_decoded_anew_with_a_line_of_warning(cache, root, capsys):
    decoded = content(validation(root))
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert_equal(content(validation(root)), decoded)
    warning = capsys.readouterr().err
    assert "damaged" in warning and len(warning.splitlines()) == 1
    assert_equal(content(validation(root)), decoded)


def test_what_was_removed_meanwhile_is_decoded_anew(cache, root):
    batches = validation(root)
    decoded = content(batches)
    trim([cache], 0)
    assert not list(cache.iterdir())
    assert_equal(content(batches), decoded)


def test_what_is_verified_is_decoded_by_itself(cache, root):
    with computing_anew():
        batches = validation(root)
        assert_equal(content(batches), content(batches))
    assert not cache.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of a process")
def test_without_room_every_pass_decodes(cache, root):
    code = f"""
import pathlib, resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
sys.path.insert(0, {str(ROOT / "tests")!r})
from test_decoded import assert_equal, content, validation
root = pathlib.Path({str(root)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
batches = validation(root)
assert_equal(content(batches), content(batches))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1 and "cannot be written (File too large)" in done.stderr
    assert not list(cache.iterdir())
