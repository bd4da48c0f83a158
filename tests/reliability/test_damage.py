"""Damaged statistics, drawn data and records: never a wrong number, one line of warning, and whole files afterwards."""

import random
import shutil

import pytest
import torch
from damages import damaged
from records import make_run, report, write_runs
from small_networks import known_of

from bitsplit import methods
from bitsplit.data import glyphs, glyphs_coco
from bitsplit.kept import store_file, stored_file
from bitsplit.report import record
from bitsplit.report.records import read_records
from bitsplit.statistics.cache import cached_statistics


@pytest.fixture
def collect(network):
    statistics = known_of(network, methods.named("tflite")).statistics

    def count():
        count.calls += 1
        return statistics

    count.calls = 0
    return count


def test_damaged_statistics_are_collected_anew_with_a_line_of_warning(network, collect, tmp_path, capsys):
    expected = cached_statistics(tmp_path / "key", network, collect)
    for seed in range(100):
        (file,) = tmp_path.iterdir()
        content = file.read_bytes()
        file.write_bytes(damaged(content, random.Random(seed)))
        assert file.read_bytes() != content
        read = cached_statistics(tmp_path / "key", network, collect)
        assert collect.calls == seed + 2
        warning = capsys.readouterr().err
        assert len(warning.splitlines()) == 1 and str(file) in warning and "damaged" in warning
        for name, layer in expected.layers.items():
            assert torch.equal(read.layers[name].stats.gram, layer.stats.gram)
        assert list(read.layers) == list(expected.layers) and read.skipped == expected.skipped
    assert len(list(tmp_path.iterdir())) == 1


def test_statistics_that_cannot_be_kept_are_used_all_the_same(network, collect, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cached_statistics(tmp_path / "file" / "key", network, collect).layers
    assert "cannot be written" in capsys.readouterr().err


def test_damaged_glyphs_are_drawn_anew_with_a_line_of_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(glyphs, "SHARD", 200)
    images, labels = glyphs.load_glyphs("val", 150, tmp_path)
    (shard,) = glyphs.glyphs_folder(tmp_path).iterdir()
    whole = shard.read_bytes()
    capsys.readouterr()
    for seed in range(3):
        shard.write_bytes(damaged(whole, random.Random(seed)))
        again, same = glyphs.load_glyphs("val", 150, tmp_path)
        assert (again == images).all() and (same == labels).all()
        assert capsys.readouterr().err.count(str(shard)) == 1
        assert list(shard.parent.iterdir()) == [shard] and shard.read_bytes() == whole
    glyphs.load_glyphs("val", 150, tmp_path)
    assert str(shard) not in capsys.readouterr().err


def flip(path):
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: flip(folder / "images" / "000001.png"),
        lambda folder: flip(folder / "annotations.json"),
        lambda folder: cut(folder / "images" / "000000.png"),
        lambda folder: cut(folder / "annotations.json"),
        lambda folder: (folder / "images" / "000000.png").unlink(),
        lambda folder: (folder / "annotations.json").unlink(),
        lambda folder: (folder / "images" / "000002.png").write_bytes(b""),
        lambda folder: (folder / "images" / "000000.png").rename(folder / "images" / "0.png"),
        shutil.rmtree,
        lambda folder: (shutil.rmtree(folder), folder.write_bytes(b"")),
    ],
    ids=["pixel", "annotation", "cut image", "cut json", "lost image", "lost json", "one more", "name", "lost", "file"],
)
def test_damaged_scenes_are_drawn_anew_as_a_whole(tmp_path, capsys, change):
    folder = glyphs_coco.drawn_scenes("val", 2, tmp_path)
    content = {path: path.read_bytes() for path in folder.rglob("*.*")}
    change(folder)
    there = folder.exists()
    glyphs_coco._intact_scenes.cache_clear()  # as in another process
    capsys.readouterr()
    assert glyphs_coco.drawn_scenes("val", 2, tmp_path) == folder
    assert capsys.readouterr().err.count(f"warning: {folder} is not used (it is damaged)") == there
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == content
    assert list(folder.parent.iterdir()) == [folder]
    glyphs_coco._intact_scenes.cache_clear()
    glyphs_coco.drawn_scenes("val", 2, tmp_path)
    assert str(folder) not in capsys.readouterr().err


def test_scenes_are_read_for_their_digest_once_a_process(tmp_path):
    for _ in range(3):
        glyphs_coco.drawn_scenes("val", 1, tmp_path)
    before = glyphs_coco._intact_scenes.cache_info().misses
    glyphs_coco.drawn_scenes("val", 1, tmp_path)
    assert glyphs_coco._intact_scenes.cache_info().misses == before


def test_damaged_records_are_left_out_and_named(tmp_path, capsys):
    whole, other = make_run(), make_run("resnet50")
    write_runs(tmp_path, whole, other)
    path = next((tmp_path / "glyphs" / "runs").glob("resnet18*"))
    content = path.read_bytes()
    (expected,) = (run for run in read_records(tmp_path, "glyphs").runs if run["model"] == "resnet18")
    left_out = 0
    for seed in range(100):
        path.write_bytes(damaged(content, random.Random(seed)))
        runs = read_records(tmp_path, "glyphs").runs
        warning = capsys.readouterr().err
        assert runs[-1]["model"] == "resnet50"
        if len(runs) == 2:  # white space
            assert runs[0] == expected and not warning
        else:
            left_out += 1
            assert record.read(path) is None and capsys.readouterr().err == warning
            assert len(warning.splitlines()) == 1 and str(path) in warning
    assert left_out > 90
    done = report(tmp_path)
    assert done.returncode == 0 and done.stderr == warning


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe", b"9" * 10_000, b'{"digest": NaN}', b"null"])
def test_whatever_lies_among_the_records_is_left_out_and_named(tmp_path, content):
    write_runs(tmp_path, make_run())
    folder = tmp_path / "glyphs" / "runs"
    (folder / "strange.json").write_bytes(content)
    (folder / "folder.json").mkdir()
    done = report(tmp_path)
    assert done.returncode == 0 and len(done.stderr.splitlines()) == 2
    assert "strange.json" in done.stderr and "folder.json" in done.stderr


def test_a_stored_file_replaces_the_one_before(tmp_path):
    for text in ("one", "two"):
        store_file(tmp_path, "name", ".txt", lambda path, text=text: path.write_text(text))
        assert stored_file(tmp_path, "name", ".txt").read_text() == text
    assert len(list(tmp_path.iterdir())) == 1 and stored_file(tmp_path, "other", ".txt") is None
