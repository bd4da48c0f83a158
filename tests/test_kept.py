"""What processes keep for each other: made once, also by two at a time, and bounded in size."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from bitsplit.errors import InputError
from bitsplit.kept import kept, trim
from bitsplit.settings import Cache


def value_in(folder, make, stem="0a"):
    return kept(folder, stem, ".txt", make, lambda path, value: path.write_text(value), lambda path: path.read_text())


def test_processes_that_come_meanwhile_wait_for_what_one_makes(tmp_path):
    code = f"""
import time, pathlib
from bitsplit.kept import kept
def make():
    with open({str(tmp_path / "made")!r}, "a") as log:
        log.write("made ")
    time.sleep(1)
    return "value"
read = lambda path: path.read_text()
print(kept(pathlib.Path({str(tmp_path / "kept")!r}), "0a", ".txt", make, lambda path, v: path.write_text(v), read))
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(3)
    ]
    assert [process.communicate(timeout=100)[0] for process in processes] == ["value\n"] * 3
    assert (tmp_path / "made").read_text() == "made "
    assert len(list((tmp_path / "kept").iterdir())) == 1  # no lock is left


def test_a_process_that_waits_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bitsplit.kept._PATIENCE", 0.05)
    code = f"""
import filelock, time
with filelock.FileLock({str(tmp_path / ".0a.lock")!r}):
    print("held", flush=True)
    time.sleep(1)
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    assert value_in(tmp_path, lambda: "made") == "made"
    assert capsys.readouterr().err == f"waiting for another run, which is making {tmp_path.name} for this one too\n"
    other.communicate()


def test_an_exception_while_it_is_made_leaves_nothing_and_no_lock(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        value_in(tmp_path, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert list(tmp_path.iterdir()) == []
    assert value_in(tmp_path, lambda: "later") == "later"


def test_what_was_used_last_stays_and_nothing_else_is_touched(tmp_path):
    for age, stem in ((3, "0a"), (2, "0b"), (1, "0c")):
        value_in(tmp_path, lambda: "12345", stem)
        (path,) = tmp_path.glob(f"{stem}-*")
        os.utime(path, ns=(10**18 - age, 10**18 - age))
    (tmp_path / "mine.txt").write_text("a user's own")
    value_in(tmp_path, lambda: "never made", "0a")  # used last
    trim([tmp_path], 10)
    assert {path.name[:2] for path in tmp_path.iterdir()} == {"0a", "0c", "mi"}
    trim([tmp_path, tmp_path / "not there"], 0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_what_cannot_be_removed_ends_no_run(tmp_path, monkeypatch):
    """A cache that is another user's, or a file that another process removes meanwhile."""
    value_in(tmp_path, lambda: "12345", "0a")

    def refuse(path, missing_ok=False):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    trim([tmp_path], 1)
    monkeypatch.undo()
    (tmp_path / "0b-gone.txt").symlink_to(tmp_path / "nothing")
    trim([tmp_path], 10)
    assert len(list(tmp_path.glob("0a-*"))) == 1


def test_what_is_not_whole_is_made_again(tmp_path):
    made = iter("12")
    for expected in "12":
        assert kept(tmp_path, "0a", ".txt", lambda: next(made), None, None, lambda _: False) == expected
    assert not list(tmp_path.iterdir())


def test_what_another_process_trims_meanwhile_is_made_again(tmp_path):
    def write(path, text):
        path.write_text(text)

    def gone(path):
        path.unlink()
        return path.read_text()

    assert kept(tmp_path, "0a", ".txt", lambda: "1", write, gone) == "1"
    assert kept(tmp_path, "0a", ".txt", lambda: "2", write, gone) == "2"


@pytest.mark.parametrize("bound", [0, -1, float("nan"), float("inf"), True, "all"])
def test_a_bound_is_a_positive_number(bound):
    with pytest.raises(InputError, match="max_gb must be a positive number"):
        Cache(max_gb=bound)
