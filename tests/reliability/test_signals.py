"""Ctrl-C, SIGTERM and SIGKILL at any moment: one line, nothing lost or wrong, no process and no temporary file left."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, environment, trials

from bitsplit.report import record

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc"),
]
CELLS = ["-m", "data=glyphs", "data.validation_images=100", *SMALL, "method=tflite", "wbits=4,8", "logger=none"]
SIGNALS = trials(1)  # to each kind of sweep
# How long a sweep takes, compared with one through the basic launcher that draws its images first.
DURATIONS = {("basic", "cold"): 1, ("basic", "warm"): 0.6, ("joblib", "cold"): 1.6, ("joblib", "warm"): 0.9}


def started(folder: Path, *arguments: str) -> subprocess.Popen:
    """A sweep in a session of its own, with a mark in the environment of all its processes."""
    line = [sys.executable, str(ROOT / "run.py"), *CELLS, f"results={folder / 'results'}", *arguments]
    line.append(f"hydra.sweep.dir={folder / 'sweep'}")
    variables = environment(BITSPLIT_CACHE=str(folder / "cache"), BITSPLIT_TEST_MARK=str(folder))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(line, cwd=ROOT, env=variables, start_new_session=True, **pipes)


def processes(folder: Path) -> dict[int, bytes]:
    """Command lines of those that bear the mark and are no zombies."""
    alive = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            marked = f"BITSPLIT_TEST_MARK={folder}".encode() in (place / "environ").read_bytes().split(b"\0")
            if marked and (place / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                alive[int(place.name)] = (place / "cmdline").read_bytes()
        except (OSError, IndexError):
            continue
    return alive


def assert_no_process_is_left(folder: Path, within: float = 10) -> None:
    end = time.monotonic() + within
    while processes(folder) and time.monotonic() < end:
        time.sleep(0.2)
    assert processes(folder) == {}


def temporary_files(folder: Path) -> set[Path]:
    return set(folder.rglob("*.tmp"))


def outcomes(folder: Path) -> dict[str, dict]:
    """What the records hold, by file, without times and places."""
    found = {}
    for path in sorted((folder / "results").rglob("*.json")):
        run = record.read(path)
        assert run is not None, f"{path} is broken"
        found[path.name] = {key: run[key] for key in ("config_hash", "metrics", "layers")}
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[Path, float]:
    """The folder of an undisturbed run that began without a cache, and how many seconds it took."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    begin = time.monotonic()
    process = started(folder)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert len(outcomes(folder)) == 2
    return folder, time.monotonic() - begin


def prepare(folder: Path, cache: str) -> None:
    """There is a cell to run; a cold cache holds nothing but what a killed run may have left half-written."""
    if len(outcomes(folder)) == 2:
        shutil.rmtree(folder / "results")
    if cache == "cold":
        for path in (folder / "cache").rglob("*"):
            if path.is_file() and path.suffix != ".tmp":
                path.unlink()


def send(process: subprocess.Popen, number: int) -> str:
    """Sends the signal as a terminal, a batch system or the kernel does; returns what the process says on stderr."""
    if number == signal.SIGINT and process.poll() is None:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    return process.communicate(timeout=60)[1]


@pytest.mark.parametrize("cache", ["cold", "warm"])
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_signals_at_random_moments_lose_nothing_and_leave_nothing(tmp_path, uninterrupted, launcher, cache):
    undisturbed, duration = uninterrupted
    right, chance = outcomes(undisturbed), random.Random(f"{launcher} {cache}")
    shutil.copytree(undisturbed / "cache", tmp_path / "cache")
    for _ in range(SIGNALS):
        prepare(tmp_path, cache)
        number, before = chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL]), temporary_files(tmp_path)
        process = started(tmp_path, f"hydra/launcher={launcher}")
        time.sleep(chance.uniform(0.3, duration * DURATIONS[launcher, cache]))
        errors = send(process, number)
        assert_no_process_is_left(tmp_path)
        assert outcomes(tmp_path).items() <= right.items()
        if number != signal.SIGKILL:
            assert process.returncode in (0, 130), errors
            assert process.returncode == 0 or "interrupted; finished cells are kept" in errors
            assert temporary_files(tmp_path) <= before
            # A terminal's Ctrl-C reaches joblib's workers too, which for a moment import joblib and none of our code.
            assert "Traceback" not in errors or (launcher, number) == ("joblib", signal.SIGINT)
    prepare(tmp_path, cache)
    process = started(tmp_path, f"hydra/launcher={launcher}")
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert outcomes(tmp_path) == right
    assert not temporary_files(tmp_path)
    assert not list(tmp_path.glob("sweep/.bitsplit*"))


@pytest.mark.parametrize("seconds", [0, 0.3, 1, 4])
def test_no_worker_of_joblib_outlives_a_parent_killed_after_its_birth(tmp_path, seconds):
    """0.3 s after its birth a worker has not been given a cell yet, and after 4 s it draws images."""
    process = started(tmp_path, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    while not any(b"LokyProcess" in line for line in processes(tmp_path).values()):
        assert process.poll() is None, process.communicate()
    time.sleep(seconds)
    process.kill()
    process.communicate(timeout=60)
    assert_no_process_is_left(tmp_path)


def test_no_worker_that_draws_outlives_a_killed_parent(tmp_path):
    process = started(tmp_path)
    while len(processes(tmp_path)) < 2:
        assert process.poll() is None, process.communicate()
    process.kill()
    process.communicate(timeout=60)
    assert_no_process_is_left(tmp_path)
