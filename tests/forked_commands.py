"""Whole commands without their two seconds of imports: `run.py` as the main program of a forked child for each.

As a script it reads from stdin, one in JSON a line, what to run where, and prints the outcome of each in a line.
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
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir

ROOT = Path(__file__).resolve().parents[1]
_SECONDS = 300  # for one command


@dataclass(frozen=True)
class Ended:
    arguments: list[str]
    returncode: int
    stdout: str
    stderr: str


class ForkedCommands:
    """A process with everything imported, in which commands are run one after the other until the `with` ends."""

    def __init__(self, environment: dict[str, str]):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._environment = environment
        self._process = subprocess.Popen([sys.executable, __file__], env=environment, text=True, **pipes)

    def __enter__(self) -> "ForkedCommands":
        return self

    def __exit__(self, *exception) -> None:
        self._process.communicate()

    def run(self, arguments: Iterable[str], cwd: Path, **variables: str) -> Ended:
        """What `python run.py ARGUMENTS` does in the folder `cwd`, with these variables in the environment."""
        wanted = {"arguments": list(arguments), "cwd": str(cwd), "environment": self._environment | variables}
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        outcome = self._process.stdout.readline()
        assert outcome, f"the process that forks has ended: {self._process.wait()}"
        return Ended(**json.loads(outcome))


def _run(arguments: list[str], cwd: str, environment: dict[str, str]) -> Ended:
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        if (child := os.fork()) == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)
            os.chdir(cwd)
            os.environ.clear()
            os.environ.update(environment)
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
    import bitsplit.networks.narrow
    import bitsplit.runs.experiment
    import bitsplit.tasks.classification  # noqa: F401
    from bitsplit.errors import InputError
    from bitsplit.networks.detectors import require_mmdet

    with suppress(InputError):  # where the extra is not installed
        require_mmdet()

    # Hydra then knows its plugins, and its grammar is in memory.
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        compose("config", ["data=glyphs", "wbits=4"])
    gc.freeze()  # or the children's collectors would copy the parent's memory
    for line in sys.stdin:
        print(json.dumps(vars(_run(**json.loads(line)))), flush=True)
