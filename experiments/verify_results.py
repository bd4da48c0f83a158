"""Computes a random sample of the committed records anew and says of each whether it comes out equal.

Command:  make verify-results k=10   (or: python experiments/verify_results.py --cells 10 [--root FOLDER] [--seed 1])
Data:     glyphs, embedded; records of ImageNet with --root, of detectors after `make setup-detection`
Expected: half a minute to five minutes a cell on one thread, and the same digits on the same kind of processor
Writes:   nothing
"""

import argparse
import importlib.util
import random
import re
import secrets
import sys
import tempfile
from pathlib import Path

from hydra import compose
from script import ROOT, configurations, in_one_line, parser_of, positive, use_one_thread

from bitsplit.errors import InputError, one_line
from bitsplit.files import user_path
from bitsplit.kept import computing_anew
from bitsplit.networks.weights import SHIPPED_SHA256
from bitsplit.report import record
from bitsplit.report.titles import PAPER_DETECTORS, method_title, model_title
from bitsplit.runs import experiment
from bitsplit.runs.arguments import readable_arguments
from bitsplit.runs.sweep import EXPECTED

_SECTIONS = ("method", "bits", "calibration", "batch_norm")  # of a record's configuration, under the same keys
_NOT_KEYS = ("name", "title", "files")  # facts about the data and the method that no key sets


def overrides_of(run: dict, root: Path | None) -> list[str]:
    """Arguments of `run.py` that ask for a record's configuration; `root`: the folder of data that are not drawn."""
    config = run["config"]
    drawn = run["data"]["name"].startswith("glyphs")
    data = [f"data={run['data']['name']}"] if drawn else ["data=imagenet", f"data.root={root}"]
    values = {f"data.{key}": value for key, value in config["data"].items() if key not in _NOT_KEYS}
    for section in _SECTIONS:
        values |= {f"{section}.{key}": value for key, value in config[section].items() if key not in _NOT_KEYS}
    values |= {key: run[key] for key in ("wbits", "abits", "seed")} | {"convention": config["convention"]}
    if run["model"] in PAPER_DETECTORS:
        values["model.scope"] = config["model"]["scope"]
    if pairs := config["layers"]["bits"]:
        values["layer_bits"] = "{" + ",".join(f"{pattern}:{bits}" for pattern, bits in pairs) + "}"
    settings = [f"{key}={'null' if value is None else value}" for key, value in values.items()]
    skipped = ("bits.wbits=", "bits.abits=")  # which are wbits and abits there
    chosen = [f"model={run['model']}", f"method={run['method']}", *data]
    return chosen + [setting for setting in settings if not setting.startswith(skipped)]


def difference(new: dict, committed: dict) -> str:
    """ "" where a record computed anew has the committed one's numbers, else by how much it has not."""
    if new["config_hash"] != committed["config_hash"]:
        return "another configuration now: run it again"
    moved = []
    for network, numbers in committed["metrics"].items():
        for key, value in numbers.items():
            now = new["metrics"][network][key]
            if now != value:
                by = f" {now - value:+.4g}" if isinstance(value, int | float) and now is not None else ""
                moved.append(f"{network} {key}{by}")
    if not moved and new["layers"] != committed["layers"]:
        moved = [_errors_moved(new["layers"], committed["layers"])]
    return ", ".join(moved)


def _errors_moved(new: list[dict], committed: list[dict]) -> str:
    """By how much the errors in two reports differ at most, or that something else does."""
    pairs = list(zip(new, committed, strict=False))
    keys = "relative_error", "input_error"
    most = {key: max((abs(now[key] - was[key]) for now, was in pairs), default=0.0) for key in keys}
    moved = [f"{key} of layers by up to {value:.2g}" for key, value in most.items() if value]
    return f"metrics equal; moved: {' and '.join(moved) or 'what the report says of layers'}"


def can_run(run: dict, root: Path | None) -> bool:
    """Whether the data, weights and packages of a record's cell are there, or can be had."""
    if run["model"] in PAPER_DETECTORS and importlib.util.find_spec("mmdet") is None:
        return False
    data = r"glyphs(_coco)?" if root is None else r"glyphs(_coco)?|imagenet(_\d+)?"
    return bool(re.fullmatch(data, run["data"]["name"])) and are_public(**run["weights"])


def are_public(file: str, sha256: str) -> bool:
    """Whether weights are shipped with the package, or published: the name of their file ends in digits of its hash."""
    digits = Path(file).stem.rpartition("-")[2]
    return sha256 in SHIPPED_SHA256.values() or (len(digits) >= 8 and sha256.startswith(digits))


def sample(arguments: argparse.Namespace) -> list[dict]:
    """Records drawn at random among those that can run here; raises InputError where there is none."""
    paths = sorted(arguments.results.glob("*/runs/*.json"))
    runs = [run for run in map(record.read, paths) if run is not None and can_run(run, arguments.root)]
    if not runs:
        raise InputError(f"no record in {arguments.results} can be computed here; see --help")
    return random.Random(arguments.seed).sample(runs, min(arguments.cells, len(runs)))


def verdict(run: dict, root: Path | None) -> tuple[bool, str]:
    """Whether a record's cell comes out equal, and in words: by how much not, or why it could not be computed."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            keys = [*overrides_of(run, root), f"results={scratch}", "device=cpu"]
            new, _, _ = experiment.run(compose("config", readable_arguments(keys)))
    except EXPECTED as error:
        return False, f"cannot be computed: {one_line(error)}"
    where = "" if new["machine"]["processor"] == run["machine"]["processor"] else ", another processor"
    moved = difference(new, run)
    return not moved, f"{moved or 'equal'}{where}"


@in_one_line
def main() -> int:
    """Exit code: 0 where all are equal, 1 where one is not, 2 for what the user can put right."""
    parser = parser_of(__doc__)
    parser.add_argument("--cells", type=positive, default=10, metavar="K", help="how many records (default: 10)")
    parser.add_argument("--root", type=user_path, help="folder of ImageNet")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="of the draw (default: a new one)")
    parser.add_argument("--results", type=user_path, default=ROOT / "results", help="folder of the committed records")
    arguments = parser.parse_args()
    use_one_thread()
    equal = 0
    runs = sample(arguments)
    print(f"{len(runs)} records, drawn with --seed {arguments.seed}", flush=True)
    with configurations(), computing_anew():
        for run in runs:
            same, said = verdict(run, arguments.root)
            equal += same
            bits = f"W{run['wbits']}A{run['abits']}"
            cell = f"{run['data']['name']} {model_title(run['model'])} {method_title(run['method'])} {bits}"
            print(f"{cell} seed {run['seed']} {run['variant']}: {said}", flush=True)
    print(f"{equal} of {len(runs)} equal")
    return 0 if equal == len(runs) else 1


if __name__ == "__main__":
    sys.exit(main())
