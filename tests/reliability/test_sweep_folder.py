"""A sweep counts its own cells and removes its own files and nothing else, whatever folder it is told to keep them in
and whoever else keeps some there."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, environment

from bitsplit.files import own_name, temporary_file
from bitsplit.report import record

CELLS = ["-m", "data=glyphs", "data.validation_images=100", *SMALL, "method=tflite", "wbits=4,8", "logger=none"]


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def started(place, *arguments, **variables):
    """A sweep on its way, whose working directory is `place`."""
    line = [sys.executable, str(ROOT / "run.py"), *CELLS, f"results={place / 'results'}", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(line, cwd=place, env=environment(**variables), **pipes)


def sweep(place, *arguments):
    process = started(place, *arguments)
    stdout, stderr = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def outcomes(results):
    """What the records hold, by file, without times and places."""
    runs = {path.name: record.read(path) for path in results.rglob("*.json")}
    return {name: (run["config_hash"], run["metrics"], run["layers"]) for name, run in runs.items()}


def children(process, word):
    """Numbers of the processes that `process` has started with `word` in their command lines."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and word in (place / "cmdline").read_bytes():
                found.append(int(place.name))
    return found


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_a_folder_of_the_users_is_left_as_it_was(tmp_path):
    folder = tmp_path / "thesis"
    (folder / "outcomes").mkdir(parents=True)
    (folder / "outcomes" / "00000.json").write_text("{}")
    (folder / "multirun.yaml").write_text("mine: true\n")
    (folder / "chapter.tex").write_text("precious")
    before = snapshot(folder)
    done = sweep(tmp_path, f"hydra.sweep.dir={folder}", f"results={folder / 'results'}")
    assert done.returncode == 0 and "2 cells run, 0 already there, 0 failed" in done.stdout, done.stderr
    after = snapshot(folder)
    records = [path for path in after if "results" in path.parts]
    assert len(records) == 2
    changed = {path for path in before if after.get(path) != before[path]}
    assert changed <= {folder / "multirun.yaml"}  # Hydra writes its own there, whoever asks for that folder
    assert after.keys() - set(records) == before.keys()


def test_a_folder_of_its_own_is_gone_afterwards(tmp_path):
    done = sweep(tmp_path, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=pytest.mark.slow)])
def test_sweeps_that_are_given_one_folder_count_their_own_cells(tmp_path, launcher):
    """The second begins, fails and ends while the first stands still."""
    given = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    first = started(tmp_path, given, f"hydra/launcher={launcher}")
    wait_for(tmp_path / "sweep" / "multirun.yaml", first)
    first.send_signal(signal.SIGSTOP)
    try:
        second = sweep(tmp_path, given, f"hydra/launcher={launcher}", "wbits=1,9")
    finally:
        first.send_signal(signal.SIGCONT)
    stdout, stderr = first.communicate(timeout=100)
    assert second.returncode == 2 and "0 cells run, 0 already there, 2 failed" in second.stdout, second.stderr
    assert first.returncode == 0 and "2 cells run, 0 already there, 0 failed" in stdout, stderr
    assert "started" not in second.stdout + stdout


@pytest.mark.slow
def test_what_a_killed_sweep_left_is_not_counted_and_goes(tmp_path):
    folder = tmp_path / "sweep"
    killed = started(tmp_path, f"hydra.sweep.dir={folder}", "wbits=1,9,4,8")
    while not list(folder.glob(".bitsplit-outcomes-*/00001.json")):
        assert killed.poll() is None, killed.communicate()
    killed.kill()
    killed.communicate()
    foreign = folder / ".bitsplit-outcomes-0123abcd-1-0123abcd" / "00000.json"  # of a machine that cannot be asked
    foreign.parent.mkdir()
    foreign.write_text("{}")
    done = sweep(tmp_path, f"hydra.sweep.dir={folder}")
    assert done.returncode == 0, done.stderr
    assert "0 failed" in done.stdout and "started" not in done.stdout
    assert list(folder.glob(".bitsplit*")) == [foreign.parent] and foreign.exists()


@pytest.mark.parametrize("place", ["results", "cache"])
def test_a_temporary_file_goes_when_its_maker_was_killed(tmp_path, place):
    folder = tmp_path / place
    script = (
        "import os, pathlib, signal; from bitsplit.files import temporary_file\n"
        f"with temporary_file(pathlib.Path({str(folder)!r}), 'one'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT)
    (left,) = folder.iterdir()
    others = {
        left.name.replace(left.name.split("-")[1], "0123abcd"),  # of another machine
        own_name(".one") + ".tmp",  # of a process that lives
        ".mine-1.tmp",
        "mine.tmp",
    }
    for name in others:
        (folder / name).touch()
    with temporary_file(folder, "two"):
        pass
    assert {path.name for path in folder.iterdir()} == others


@pytest.mark.slow
def test_two_sweeps_on_one_cold_cache_and_one_results_folder(tmp_path):
    """In the default place of sweeps, and begun in the same second."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    assert sweep(alone).returncode == 0
    variables = {"BITSPLIT_CACHE": str(together / "cache")}
    both = [started(together, **variables) for _ in range(2)]
    for process in both:
        stdout, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
        assert "0 failed" in stdout and "started" not in stdout
    assert outcomes(together / "results") == outcomes(alone / "results")
    assert sorted(os.listdir(together)) == ["cache", "results"]
    assert not list(together.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_cells_that_never_started_are_named_on_stderr(tmp_path):
    """A worker that is killed, as for want of memory, takes the others with it."""
    process = started(tmp_path, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "wbits=3,4,5,6,7,8")
    while not (workers := children(process, b"LokyProcess")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.kill(workers[0], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == 1 and "never started" in stdout
    assert "error: A worker process" in stderr and "Traceback" not in stderr
