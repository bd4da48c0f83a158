"""Whole commands without their two seconds of imports: `run.py` as the main program of a forked child for each line.

As a script it reads lists of arguments from stdin, one in JSON a line, and prints the outcome of each.
"""

import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir

ROOT = Path(__file__).resolve().parents[1]
_SECONDS = 60  # for one command


@dataclass(frozen=True)
class Ended:
    arguments: list[str]
    returncode: int
    stdout: str
    stderr: str


def run_commands(lines: list[list[str]], cwd: Path, environment: dict[str, str]) -> list[Ended]:
    """What `python run.py ARGUMENTS` does for each of `lines`, one after the other."""
    given = "".join(f"{json.dumps(line)}\n" for line in lines)
    script = [sys.executable, __file__]
    done = subprocess.run(script, input=given, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [Ended(*outcome) for outcome in json.loads(done.stdout)]


def _run(arguments: list[str]) -> Ended:
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        if (child := os.fork()) == 0:
            os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)
            _become(arguments)
        _, status = os.waitpid(child, 0)
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return Ended(arguments, os.waitstatus_to_exitcode(status), *texts)


def _become(arguments: list[str]) -> None:
    """Does not return, and leaves nothing of this script to the parent's copy of it."""
    signal.alarm(_SECONDS)
    sys.argv = [str(ROOT / "run.py"), *arguments]
    code = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    runpy.run_path(str(ROOT / "run.py"), run_name="imported")
    import bitsplit.runs.experiment
    import bitsplit.tasks.classification  # noqa: F401

    # Hydra then knows its plugins, and its grammar is in memory.
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        compose("config", ["data=glyphs", "wbits=4"])
    gc.freeze()  # or the children's collectors would copy the parent's memory
    ended = [_run(json.loads(line)) for line in sys.stdin.read().splitlines()]
    print(json.dumps([list(vars(one).values()) for one in ended]))
