"""Shell completion as README describes it, in a real bash."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment

# What bash does at the Tab key: the line, its words, and the function that is registered for the first of them.
TAB = """
eval "$(python run.py -sc install=bash)"
COMP_LINE="$1"; COMP_POINT=${#1}; COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
complete -p python | grep -q hydra_bash_completion && hydra_bash_completion && printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("model=resnet", ["model=resnet101", "model=resnet18", "model=resnet50"]),
        (
            "method=bitsplit_",
            [f"method=bitsplit_{way}" for way in ("ecaq", "lattice", "per_channel", "plus", "plus_midrise")],
        ),
        ("batch_norm.m", ["batch_norm.mode=", "batch_norm.momentum="]),
        ("data=imagenet data.root=./con", ["data.root=./conf"]),
    ],
)
def test_tab_offers_keys_choices_and_paths(typed, offered):
    path = f"{Path(sys.executable).parent}:{environment()['PATH']}"
    line = ["bash", "-c", TAB, "bash", f"python run.py {typed}"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment(PATH=path), timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == offered
