"""Many cells: what is skipped, killed, run at once or failed, and the launchers that run them."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, composed, environment, trials
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import open_dict

from bitsplit.report import record
from bitsplit.runs import sweep

EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
TWO_CELLS = ["-m", "data=glyphs", "data.validation_images=200", *SMALL, "method=tflite", "wbits=4,8", "abits=8"]


def outcomes(results: Path) -> dict[str, dict]:
    """What the records hold, by file, without times and places."""
    found = {}
    for path in sorted(results.rglob("*.json")):
        run = record.read(path)
        assert run is not None, f"{path} is broken"
        found[path.name] = {key: run[key] for key in ("config_hash", "metrics", "layers")}
    return found


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory) -> dict[str, dict]:
    """The records of TWO_CELLS from one undisturbed run."""
    results = tmp_path_factory.mktemp("uninterrupted") / "results"
    done = subprocess.run(line(results), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "2 cells run, 0 already there, 0 failed" in done.stdout
    return outcomes(results)


def line(results: Path, *arguments: str) -> list[str]:
    return [sys.executable, "run.py", *TWO_CELLS, f"results={results}", "logger=none", *arguments]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_cells_are_those_of_hydras_own_sweeper(experiment):
    config = composed(f"experiment={experiment}", "seed=1", hydra=True)
    given = [f"{key}={value}" for key, value in config.hydra.sweeper.params.items()] + list(config.hydra.overrides.task)
    (oracle,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(given), None)
    assert sweep.expand(config) == oracle


def test_a_sweep_over_all_that_fit_a_pattern():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", ["experiment=table5"], return_hydra_config=True)
        with open_dict(config):
            config.hydra.sweeper.params.method = "glob(aciq*)"
        methods = {part for cell in sweep.expand(config) for part in cell if part.startswith("method=")}
    assert methods == {"method=aciq", "method=aciq_mix"}


def test_a_failed_cell_stops_no_other_and_is_reported_at_the_end(command, tmp_path):
    done = command(*TWO_CELLS, "wbits=4,1,8")
    assert done.returncode == 2
    assert "2 cells run, 0 already there, 1 failed" in done.stdout
    assert "wbits=1" in done.stderr and "wbits must be an integer from 2 to 8" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr
    again = command(*TWO_CELLS, "wbits=4,8")
    assert again.returncode == 0 and "all 2 cells have a record" in again.stdout
    third = command(*TWO_CELLS, "wbits=4,5,8")
    assert "1 cells run, 2 already there, 0 failed" in third.stdout


def test_force_with_a_time_runs_only_older_records_again(command, tmp_path):
    assert command(*TWO_CELLS).returncode == 0
    first, second = sorted((tmp_path / "results").rglob("*.json"))
    os.utime(first, (1, 1))
    done = command(*TWO_CELLS, f"force={int(time.time()) - 1000}")
    assert "1 cells run, 1 already there" in done.stdout
    assert first.stat().st_mtime > 1000


@pytest.mark.slow
def test_kill_at_random_moments_loses_at_most_the_cell_in_flight(tmp_path, uninterrupted):
    """SIGKILL to the whole process group at random moments; whatever stands then is whole and right."""
    results, chance = tmp_path / "results", random.Random(0)
    started = time.monotonic()
    subprocess.run(line(tmp_path / "timing"), cwd=ROOT, env=environment(), capture_output=True, timeout=300)
    duration = time.monotonic() - started
    for _ in range(trials(3)):
        process = subprocess.Popen(
            line(results),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        # Nothing is written in the first third, while libraries are loaded.
        time.sleep(duration * chance.uniform(0.3, 1))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        found = outcomes(results)
        assert found.items() <= uninterrupted.items()
        if len(found) == 2:
            for path in results.rglob("*.json"):
                path.unlink()
    done = subprocess.run(line(results), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert outcomes(results) == uninterrupted


def test_two_processes_on_the_same_cells_at_once(tmp_path, uninterrupted):
    results = tmp_path / "results"
    both = [
        subprocess.Popen(line(results), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in both:
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
    assert outcomes(results) == uninterrupted


def launched(results: Path, *launcher: str) -> subprocess.CompletedProcess:
    """The sweep through a launcher, finished well."""
    arguments = line(results, *launcher)
    done = subprocess.run(arguments, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done


def test_joblib_sweep(tmp_path, uninterrupted):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra `joblib`")
    results = tmp_path / "results"
    done = launched(results, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert "2 cells run" in done.stdout and "warning" not in done.stderr.lower()
    assert outcomes(results) == uninterrupted


@pytest.mark.slow
def test_joblib_sweep_over_image_files(command, imagenet_root, mobilenet):
    """Workers of the sweep start workers of their own, which decode the images."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra `joblib`")
    images = ["data=imagenet", f"data.root={imagenet_root}", *mobilenet]
    done = command("-m", *SMALL, *images, "method=tflite", "wbits=4,8", "hydra/launcher=joblib")
    assert done.returncode == 0, done.stderr
    assert "2 cells run" in done.stdout and not done.stderr.strip()


@pytest.mark.ray
@pytest.mark.slow
def test_local_ray_sweep(tmp_path, uninterrupted):
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="needs the extra `ray`")
    results = tmp_path / "results"
    launched(results, "hydra/launcher=ray")
    assert outcomes(results) == uninterrupted


def test_a_sweep_of_submitit_jobs(tmp_path, uninterrupted):
    """Slurm's jobs, as processes of this machine."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra `slurm`")
    results = tmp_path / "results"
    done = launched(results, "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5")
    assert "2 cells run" in done.stdout and outcomes(results) == uninterrupted


def test_a_launcher_that_is_not_installed_says_how(tmp_path):
    """An import hook that hides the plugins stands for an environment without the extras."""
    script = tmp_path / "without_plugins.py"
    script.write_text(
        "import importlib.abc, runpy, sys\n"
        "class Hidden(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.startswith('hydra_plugins'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        f"sys.argv[0] = {str(ROOT / 'run.py')!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    arguments = [sys.executable, str(script), "-m", "data=glyphs", "wbits=4,8", "hydra/launcher=joblib"]
    done = subprocess.run(arguments, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "pip install -e '.[joblib]'" in done.stderr


def test_wandb_that_fails_loses_no_record(tmp_path):
    results = tmp_path / "results"
    without_sweep = [argument for argument in TWO_CELLS if argument != "-m" and "wbits" not in argument]
    arguments = [sys.executable, str(ROOT / "run.py"), *without_sweep, f"results={results}"]
    broken = environment(WANDB_MODE="nonsense")
    done = subprocess.run(arguments, cwd=tmp_path, env=broken, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "W&B has not got this run" in done.stderr and "Traceback" not in done.stderr
    assert len(outcomes(results)) == 1


@pytest.mark.slow
def test_wandb_offline_has_one_run_a_cell_in_one_group(tmp_path):
    # Figures show the methods' own settings on all images only, so nothing is made smaller here.
    cells = ["-m", "data=glyphs", "method=tflite", "wbits=4,8", "abits=32"]
    arguments = [sys.executable, str(ROOT / "run.py"), *cells, f"results={tmp_path / 'results'}"]
    variables = environment(WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    done = subprocess.run(arguments, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip()
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    for run in runs:
        files = [path.relative_to(run) for path in run.rglob("*") if path.is_file()]
        assert any(path.suffix == ".wandb" for path in files)
        assert any("layers" in path.name and path.suffix == ".json" for path in files)  # the per-layer table
        assert any(path.suffix == ".png" for path in files)  # the bit-width plot
