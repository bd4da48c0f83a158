"""Records: whole or absent, checked, and equal for equal configurations."""

import json
import os
import signal
import subprocess
import sys
import time

import jsonschema
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from bitsplit.report import record


@pytest.fixture
def run() -> dict:
    """Any committed record."""
    path = next((ROOT / "results").glob("*/runs/*.json"))
    return json.loads(path.read_text())


def test_round_trip(tmp_path, run):
    path = tmp_path / "runs" / "a.json"
    record.write(path, run)
    assert record.read(path) == run
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda run: run.pop("metrics"),
        lambda run: run["metrics"].pop("fp32_bn"),
        lambda run: run.update(surprise=1),
        lambda run: run.update(config_hash="short"),
        lambda run: run["metrics"]["quantized"].update(top1="many"),
    ],
)
def test_a_record_that_breaks_the_schema_is_not_written(tmp_path, run, spoil):
    spoil(run)
    with pytest.raises(jsonschema.ValidationError):
        record.write(tmp_path / "a.json", run)
    assert not list(tmp_path.iterdir())


def test_nan_is_not_written(tmp_path, run):
    run["metrics"]["quantized"]["top1"] = float("nan")
    with pytest.raises(ValueError):
        record.write(tmp_path / "a.json", run)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": "resnet18"}'])
def test_what_is_not_a_whole_record_reads_as_none(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    assert record.read(path) is None
    assert record.read(tmp_path / "absent.json") is None


def test_kill_while_writing_leaves_whole_records_only(tmp_path, run):
    """SIGKILL during a stream of rewrites: what stands at the path is always one whole text."""
    script = (
        "import sys; from pathlib import Path; from bitsplit.files import write_text\n"
        "path = Path(sys.argv[1]); n = 0\n"
        "while True:\n    n += 1; write_text(path, str(n % 10) * 200_000)\n"
    )
    path = tmp_path / "a.txt"
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", script, str(path)])
        while not path.exists():
            assert process.poll() is None, "the writer died"
            time.sleep(0.01)
        time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        text = path.read_text()
        assert len(text) == 200_000 and len(set(text)) == 1


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.booleans(), min_size=1))
def test_hash_ignores_the_order_of_keys_and_nothing_else(config):
    assert record.config_hash(config) == record.config_hash(dict(reversed(config.items())))
    key = next(iter(config))
    assert record.config_hash(config) != record.config_hash(config | {key: [config[key]]})
