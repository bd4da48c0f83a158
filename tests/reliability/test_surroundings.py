"""Whole commands in unfriendly surroundings: nowhere to print, no home, folders that cannot be read or written."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, environment
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from bitsplit.data.glyphs import glyphs_folder, load_glyphs
from bitsplit.runs.arguments import readable_arguments

CELL = ["data=glyphs", "data.validation_images=50", *SMALL, "method=tflite", "logger=none"]
# For root, permissions count once these capabilities are gone; for everybody else they count anyway.
LIMITED = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []
STRANGE = ["/with space ü", "/it's, (a) [b] {c} #d;&!", "~/a b", "/a=b,c", "/back\\slash\\", "/nö'\\'x"]
permissions = pytest.mark.skipif(
    bool(LIMITED) and not shutil.which("setpriv"), reason="permissions do not count for root, and there is no setpriv"
)


def run(*arguments: str, shell: str = "", home: Path | None = None, program: Path = ROOT, cwd=ROOT, **variables):
    """A finished `python run.py`, with `shell` behind it, for which permissions count."""
    line = shlex.join([*LIMITED, sys.executable, str(program / "run.py"), *arguments])
    given = environment(**variables) | ({"HOME": str(home)} if home else {})
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line} {shell}"],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=given,
        timeout=300,
    )


def records(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.json"))


def assert_one_line(done: subprocess.CompletedProcess, *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: "), done.stderr
    assert all(part in done.stderr for part in parts), done.stderr


@pytest.fixture(scope="module")
def drawn() -> Path:
    """A cache with the glyphs of a run, so that no test waits for their drawing."""
    for split in ("train", "val"):
        load_glyphs(split, 1)
    return glyphs_folder()


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["| head -0", ">/dev/full", "2>&-", ">&- 2>&- <&-"])
def test_a_record_is_written_whatever_takes_the_printing(tmp_path, drawn, shell):
    done = run(*CELL, f"results={tmp_path}", shell=shell)
    assert done.returncode == 0 and len(records(tmp_path)) == 1, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_sweep_ends_well_whatever_takes_the_printing(tmp_path, drawn, launcher):
    where = [f"results={tmp_path / 'results'}", f"hydra.sweep.dir={tmp_path / 'sweep'}", f"hydra/launcher={launcher}"]
    done = run("-m", *CELL, "wbits=3,4", *where, shell=">/dev/full 2>&-")
    assert done.returncode == 0 and len(records(tmp_path)) == 2, done.stderr


@pytest.mark.parametrize("shell", [">&-", "| head -0", ">/dev/full", ">&- 2>&-"])
def test_tables_and_help_whatever_takes_the_printing(tmp_path, shell):
    runs = tmp_path / "glyphs" / "runs"
    runs.mkdir(parents=True)
    for path in (ROOT / "results" / "glyphs" / "runs").glob("resnet18-*-w4a4-s0.json"):
        shutil.copy(path, runs)
    line = f"{sys.executable} -m bitsplit.report table4 glyphs --results {tmp_path} {shell}"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and not done.stderr and list((tmp_path / "glyphs").glob("*.md"))
    assert run("--help", shell=shell).returncode == 0


ASCII = {"PYTHONUTF8": "0", "LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.slow
def test_a_run_and_help_in_a_locale_without_the_characters(tmp_path, drawn):
    done = run(*CELL, f"results={tmp_path / 'ü'}", **ASCII)
    assert done.returncode == 0 and "seed 0" in done.stdout, done.stderr
    assert len(records(tmp_path / "ü")) == 1
    assert run("--help", **ASCII).returncode == 0


@pytest.mark.slow
def test_a_home_and_a_cache_in_whose_place_a_file_lies(tmp_path, imagenet_root, mobilenet):
    file = tmp_path / "file"
    file.write_text("mine")
    for number, variables in enumerate([{"home": file, "BITSPLIT_CACHE": ""}, {"BITSPLIT_CACHE": str(file)}]):
        line = ["data=folder", f"data.root={imagenet_root}", *mobilenet, *SMALL]
        done = run(*line, "method=tflite", "logger=none", f"results={tmp_path / str(number)}", **variables)
        assert done.returncode == 0, done.stderr
        assert len(done.stderr.splitlines()) == 1 and "BITSPLIT_CACHE=FOLDER" in done.stderr
    assert file.read_text() == "mine"


@pytest.fixture
def closing() -> Iterator[Callable[[Path, int], None]]:
    """Sets a mode until the end of the test, when pytest has to remove what is there."""
    with contextlib.ExitStack() as stack:

        def close(path: Path, mode: int) -> None:
            stack.callback(path.chmod, path.stat().st_mode)
            path.chmod(mode)

        yield close


@pytest.mark.slow
@permissions
def test_neither_the_package_nor_a_home_can_be_written(tmp_path, drawn, closing):
    """numba, matplotlib and the cache find another place."""
    program = tmp_path / "program"
    shutil.copytree(ROOT / "bitsplit", program / "bitsplit", ignore=shutil.ignore_patterns("weights", "__pycache__"))
    shutil.copytree(ROOT / "conf", program / "conf")
    shutil.copy(ROOT / "run.py", program)
    (program / "bitsplit" / "weights").symlink_to(ROOT / "bitsplit" / "weights")
    home, cache = tmp_path / "home", tmp_path / "cache"
    home.mkdir()
    shutil.copytree(drawn, cache / drawn.name)
    for folder in [home, cache, *(path for path in program.rglob("*") if path.is_dir() and not path.is_symlink())]:
        closing(folder, 0o555)
    where = f"results={tmp_path / 'results'}"
    python_path = {"PYTHONPATH": str(program), "XDG_CACHE_HOME": "", "XDG_CONFIG_HOME": ""}
    done = run(*CELL, where, program=program, home=home, BITSPLIT_CACHE=str(cache), **python_path)
    assert done.returncode == 0 and len(records(tmp_path / "results")) == 1, done.stderr
    assert len(done.stderr.splitlines()) <= 1, done.stderr
    assert not list(program.rglob("__pycache__")) and not list(home.iterdir())


@pytest.mark.slow
def test_a_deleted_working_directory(tmp_path, drawn):
    gone = tmp_path / "gone"
    gone.mkdir()
    line = shlex.join([sys.executable, str(ROOT / "run.py"), *CELL])
    for results, code in (("results", 2), (tmp_path / "results", 0)):
        script = f"mkdir -p {gone} && cd {gone} && rmdir {gone} && {line} results={results}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment())
        assert done.returncode == code, done.stderr
    assert len(records(tmp_path / "results")) == 1


@permissions
def test_a_working_directory_that_cannot_be_written(tmp_path, drawn, closing):
    folder = tmp_path / "folder"
    folder.mkdir()
    closing(folder, 0o555)
    done = run(*CELL, cwd=folder, BITSPLIT_CACHE=str(drawn.parent))
    assert_one_line(done, str(folder), "results=FOLDER")


@permissions
@pytest.mark.parametrize(("data", "mode"), [("imagenet", 0), ("folder", 0o444), ("imagenet", 0o311)])
def test_a_folder_among_the_data_without_permission(tmp_path, imagenet_root, resnet18_weights, data, mode, closing):
    root = shutil.copytree(imagenet_root, tmp_path / "images")
    closed = root / "train" / "n02123045"
    closing(closed, mode)
    weights = shutil.copy(resnet18_weights, tmp_path / "weights.pth")
    line = [f"data={data}", f"data.root={root}", f"model.weights={weights}", *SMALL, "logger=none"]
    done = run(*line, f"results={tmp_path / 'results'}", BITSPLIT_CACHE=str(tmp_path / "cache"))
    assert_one_line(done, str(closed))


@permissions
def test_weights_without_permission(tmp_path, drawn, closing, resnet18_weights):
    weights = Path(shutil.copy(resnet18_weights, tmp_path / "weights.pth"))
    closing(weights, 0)
    done = run(*CELL, f"model.weights={weights}", f"results={tmp_path / 'results'}")
    assert_one_line(done, str(weights))


@pytest.mark.slow
@pytest.mark.parametrize(("data", "split"), [("imagenet", "train"), ("imagenet", "val"), ("folder", "")])
def test_images_none_of_which_can_be_read(tmp_path, imagenet_root, mobilenet, data, split):
    root = shutil.copytree(imagenet_root, tmp_path / "images")
    for path in (root / split).rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:100])
    line = [f"data={data}", f"data.root={root}", *mobilenet, *SMALL, "logger=none"]
    done = run(*line, f"results={tmp_path / 'results'}")
    assert_one_line(done, "none of the", str(root / split))
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("path", STRANGE)
def test_any_path_is_an_argument(path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (argument,) = readable_arguments([f"data.root={path}"])
    value = OverridesParser.create().parse_override(argument)
    if "," in path and path.startswith("/a"):  # the grammar's own list of values: Hydra says how to quote it
        assert argument == f"data.root='{path}'"
    assert value.value() == path.replace("~", "/home/me")


@pytest.mark.parametrize(
    "argument", ["-m", "--cfg=job", "~seed", "wbits=3,4", "layer_bits={fc:[8,8]}", "results='~/a b'"]
)
def test_what_the_grammar_reads_is_left_as_it_is(argument):
    assert readable_arguments([argument]) == [argument]


@pytest.mark.slow
def test_home_spaces_and_unicode_in_every_path(tmp_path, imagenet_root, mobilenet):
    home = tmp_path / "my höme"
    shutil.copytree(imagenet_root, home / "images, all")
    network, weights = mobilenet
    shutil.copy(weights.partition("=")[2], home / "weights (1).pth")
    given = [network, "data=folder", "data.root='~/images, all'", "model.weights=~/weights (1).pth"]
    given.append("results=~/tables ü")
    done = run(*given, *SMALL, "method=tflite", "logger=none", home=home, BITSPLIT_CACHE="~/cäche")
    assert done.returncode == 0, done.stderr
    assert len(records(home / "tables ü")) == 1 and list((home / "cäche").rglob("*.safetensors"))
    assert not (ROOT / "~").exists()


def made(*arguments: str, **variables: str) -> str:
    """What `make ARGUMENTS` would run."""
    line = ["make", "-n", "-o", ".venv/.complete", *arguments]
    return subprocess.run(
        line, capture_output=True, text=True, cwd=ROOT, env=environment(**variables), check=True
    ).stdout


@pytest.mark.parametrize("root", ["/with space ü", "/it's, (a) [b] {c} ;&!", "~/a b", "/back\\slash/x"])
def test_make_passes_the_folder_whole(root):
    (command,) = [text for text in made("table4", "DATA=imagenette", f"ROOT={root}").splitlines() if "run.py" in text]
    (argument,) = [word for word in shlex.split(command.partition(";  status")[0], posix=True) if "data.root" in word]
    assert OverridesParser.create().parse_override(argument).value() == root


def test_make_leaves_the_folder_to_the_variable_where_it_is_given_none():
    assert "data.root" not in made("results-lite", IMAGENET_ROOT="/images")
    assert "data.root=/images" in made("results-lite", "ROOT=/images")


def test_make_forces_the_cells_of_all_its_tables_once(tmp_path):
    """With a clock that never tells the same time twice."""
    (tmp_path / "date").write_text('#!/bin/sh\necho "$(($(/bin/date +%s%N) / 1000))"\n')
    (tmp_path / "date").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    for target, cells in (("table4", 1), ("results-beyond", 3)):
        assert "force=" not in made(target, "FORCE=0") + made(target)
        lines = [line for line in made(target, "FORCE=1", PATH=path).splitlines() if "run.py" in line]
        assert len(lines) == cells and len({re.search(r" force=\d+ ", line)[0] for line in lines}) == 1


@pytest.mark.slow
def test_make_and_a_folder_with_a_space(tmp_path):
    folder = tmp_path / "no ïmages, here"
    (folder / "imagenette2-320").mkdir(parents=True)
    line = [
        "make",
        "table4",
        "DATA=imagenette",
        f"ROOT={folder}",
        f"ARGS=results={tmp_path / 'results'} model=resnet18",
    ]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment())
    assert f"{folder / 'imagenette2-320' / 'val'} is missing" in done.stderr


@pytest.mark.slow
def test_the_number_of_workers_zero(tmp_path, drawn):
    where = [f"results={tmp_path / 'results'}", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    done = run("-m", *CELL, "wbits=3,4", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0", *where)
    assert_one_line(done, "n_jobs")


@pytest.mark.slow
def test_a_single_image_without_sense_is_named(tmp_path, imagenet_root, mobilenet):
    root = shutil.copytree(imagenet_root, tmp_path / "images")
    damaged = sorted(root.rglob("*.jpg"))[0]
    damaged.write_bytes(b"no image")
    Image.new("RGB", (300, 260)).save(root / "more.png")
    line = ["data=folder", f"data.root={root}", *mobilenet, *SMALL, "method=tflite"]
    done = run(*line, "logger=none", f"results={tmp_path / 'results'}")
    assert done.returncode == 0, done.stderr
    assert all(str(damaged) in text for text in done.stderr.splitlines()) and done.stderr
