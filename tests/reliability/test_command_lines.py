"""Command lines of a careless or hostile user: one line, exit code 2, nothing written.

Keys are the configuration's own, so that new ones are covered by themselves.
"""

import random
from pathlib import Path

import pytest
from conftest import SMALL, composed, environment, trials
from forked_commands import ForkedCommands
from omegaconf import DictConfig

GROUPS = ("data=glyphs", "data=imagenet", "data=folder", "model=vgg16_bn", "method=lapq", "method=aciq")
LONG = "x" * 5000
WRONG = ("null", "[a]", "{a:1}", "-1", "0", "2.5", "abc", "true", "99999999999999999999999", LONG, "''")

JUNK = (
    "--bogus",
    "--help",
    "--hydra-help",
    "--version",
    "--cfg",
    "--cfg job",
    "--cfg nope",
    "--config-name=nope",
    "--config-dir=/nope",
    "--config-path=/nope",
    "--resolve",
    "--shell-completion nope",
    "-m -m",
    "-x",
    "--",
    "-",
    "=",
    "=4",
    "~",
    "+",
    "++wbits",
    "wbits",
    "wbits==4",
    "wbits=4=4",
    "wbits=[",
    "wbits='",
    "wbits=${",
    "wbits=${nope}",
    "wbits=${oc.env:NOPE}",
    "~nope",
    "~wbits",
    "data@nope=glyphs",
    "data=nope",
    "nope.nope=4",
    "wbits=4,8",
    "wbits=range(2,4)",
    "hydra/launcher=nope",
    "hydra.nope=4",
    "-m hydra/launcher=joblib hydra.launcher.n_jobs=0",
    "größe=4",
)
TINY = ["data=glyphs", "data.validation_images=20", *SMALL, "method=tflite", "logger=none"]  # a second a cell


def leaves(config, prefix: str = "") -> list[str]:
    """The dotted keys of all values in a configuration, and of all groups."""
    keys = []
    for key in config:
        keys.append(f"{prefix}{key}")
        if isinstance(node := config._get_node(key), DictConfig):
            keys += leaves(node, f"{prefix}{key}.")
    return keys


def overrides_of(group: str) -> list[str]:
    """An override of every key that there is with this choice, without its value."""
    return [f"{sign}{key}=" for key in leaves(composed(group)) for sign in ("", "", "", "+")]


def generated(chance: random.Random, results: Path, count: int) -> list[list[str]]:
    """Command lines with a wrong value, a value that may be wrong among right ones of a sweep, or no override at all.

    Their records would lie below a file, which a run finds last of all before it computes; a sweep finds it first, and
    so has a folder for them, and cells that take a second.
    """
    keys, lines = {group: overrides_of(group) for group in GROUPS}, []
    nowhere = [f"results={results.parent / 'file' / 'results'}", "logger=none"]
    for _ in range(count):
        kind, group = chance.choice(["value"] * 6 + ["junk"] * 3 + ["sweep"]), chance.choice(GROUPS)
        if kind == "value":
            lines.append([group, *nowhere, chance.choice(keys[group]) + chance.choice(WRONG)])
        elif kind == "sweep":
            values = ",".join(chance.sample(WRONG, 2))
            lines.append(["-m", *TINY, f"results={results}", chance.choice(keys["data=glyphs"]) + values])
        else:
            lines.append([group, *nowhere, *chance.choice(JUNK).split()])
    return lines


@pytest.mark.slow
def test_generated_command_lines_end_in_one_line_or_well(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "cwd").mkdir()
    lines = generated(random.Random(0), tmp_path / "results", trials(60))
    with ForkedCommands(environment()) as commands:
        ended = [commands.run(line, tmp_path / "cwd") for line in lines]
    for one in ended:
        said = one.stderr.splitlines()
        assert one.returncode in (0, 2, 130), one
        assert "Traceback" not in one.stdout + one.stderr, one
        assert (one.returncode == 0) == (not said), one
        assert not said or said[-1].startswith("error: "), one
    assert sum(one.returncode == 2 for one in ended) > 0.6 * len(ended)
    assert sum(one.returncode == 0 for one in ended) > 0.01 * len(ended)
    assert not list((tmp_path / "cwd").iterdir())
    assert not list((tmp_path / "results").rglob("*.tmp"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["device=meta"], "device=meta is not available"),
        (["method=null"], "Config group override"),
        (["method._target_=os.getcwd"], "must name something in bitsplit.methods"),
        (["+bits.foo=4"], "there is no bits.foo; the keys are"),
        (["model.weights=[a]"], "model.weights must be a text or null"),
        (["~seed"], "seed"),
        (["wbits=${nope}"], "nope"),
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["experiment=table4"], "add -m before it"),
        (["force=maybe"], "force must be"),
        (["force=nan"], "force must be"),
        (["layer_bits=4"], "layer_bits must map patterns to bits"),
        (["layer_bits={nope.*:[8,8]}", "data=glyphs"], "no layer's name matches 'nope.*'"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_wrong_input_is_one_line_and_exit_code_2(command, tmp_path, arguments, message):
    done = command(*arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr and not (tmp_path / "results").exists()


@pytest.mark.parametrize("wrong", [["+bits.foo=1"], ["data.validation_images=abc"], ["device=null,cpu", "wbits=9"]])
def test_a_sweep_whose_cells_fail_says_how_many_and_fails(command, wrong):
    done = command("-m", "data=glyphs", "wbits=3,4", *wrong)
    assert done.returncode == 2, done.stderr
    assert "0 cells run, 0 already there, 2 failed" in done.stdout
    assert "Traceback" not in done.stderr


def test_results_that_cannot_be_written_are_found_before_the_computing(command, tmp_path):
    (tmp_path / "results").write_text("no folder")
    for arguments in (["data=glyphs"], ["-m", "data=glyphs", "wbits=3,4"]):
        done = command(*arguments)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert "cannot be written" in done.stderr and "results=FOLDER" in done.stderr
    assert (tmp_path / "results").read_text() == "no folder"


def test_every_group_of_the_configuration_is_a_group_here():
    assert {"bits", "calibration", "batch_norm", "model", "data", "method"} <= set(leaves(composed()))
