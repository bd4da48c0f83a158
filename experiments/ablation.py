"""What each ingredient of bitsplit_plus is worth, alone and together.

Command:  make table-ablation [ARGS="--networks resnet18 --seeds 0 1 2 3 4"]
Data:     glyphs, embedded, or --networks efficientnet_lite0 --set data=imagenet data.root=FOLDER
Expected: 20 minutes for resnet18, an hour for each larger network on one core, all rows and bit-widths of one seed
Writes:   one file a cell into the folder ablation beside the data's records, none run twice, and table_ablation there
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas
from hydra import compose
from scipy import stats
from script import ROOT, check_place, configurations, in_one_line, parser_of, use_one_thread

from bitsplit import ptq
from bitsplit.files import user_path, write_text
from bitsplit.methods.bitsplit import BitSplit
from bitsplit.methods.bitsplit_lattice import BitSplitLattice
from bitsplit.methods.bitsplit_plus import BitSplitPlus
from bitsplit.progress import progress
from bitsplit.report.accuracy import paired_interval
from bitsplit.report.paired import answers_of, paired_difference, verdict
from bitsplit.report.record import config_hash
from bitsplit.report.render import Table, write_table
from bitsplit.report.texts import bits_text, signed
from bitsplit.report.titles import MODEL_TITLES, PAPER_CLASSIFIERS, in_order, model_title
from bitsplit.runs.arguments import readable_arguments
from bitsplit.runs.experiment import Run
from bitsplit.runs.provenance import provenance
from bitsplit.settings import FLOAT_BITS

PLUS = "+ zero points: plus"
BITS = ((3, FLOAT_BITS), (4, 4), (3, 3), (2, 4))  # (wbits, abits)


class OneScale(BitSplitPlus):
    """Plus with one scale for all channels of an input, and so with none moved into the weights."""

    __module__ = BitSplitPlus.__module__  # whose name is the method's
    folded: ClassVar[bool] = False
    calibrate_activations = BitSplit.calibrate_activations


# By row: the method it is made of, what differs in its class, in its fields, and in the command line's settings.
ROWS = {
    "bit-split": (BitSplit, {}, {}, ()),
    "bit-split, lattice": (BitSplitLattice, {}, {}, ()),
    "+ order, λ and damping": (OneScale, {"shortcuts": False}, {"symmetric_inputs": True}, ()),
    "+ shortcuts": (OneScale, {}, {"symmetric_inputs": True}, ()),
    "+ scales by channel": (BitSplitPlus, {}, {"symmetric_inputs": True}, ()),
    PLUS: (BitSplitPlus, {}, {}, ()),
    "plus without the lattice": (BitSplitPlus, {"algorithm": "planes"}, {}, ()),
    "plus without damping": (BitSplitPlus, {}, {"damping": 0.0}, ()),
    "plus, λ = 0": (BitSplitPlus, {}, {"compensation": 0.0}, ()),
    "plus, λ = 1": (BitSplitPlus, {}, {"compensation": 1.0}, ()),
    "plus without shortcuts": (BitSplitPlus, {"shortcuts": False}, {}, ()),
    "plus without scales by channel": (OneScale, {}, {}, ()),
    "plus, re-estimated after": (BitSplitPlus, {}, {}, ("batch_norm.mode=reestimate",)),
    "plus, a quarter of the images": (BitSplitPlus, {}, {}, ("calibration.lockstep_batches=16",)),
}


def row_method(row: str) -> BitSplit:
    base, attributes, values, _ = ROWS[row]
    return type(base.__name__, (base,), {"__module__": base.__module__, **attributes})(**values)


def cells(model: str, rows: list[str], seeds: list[int], keys: list[str], results: Path) -> Iterator[dict]:
    """The cells of one network, from their files where these are of the same configuration."""
    jobs = [(row, *bits, seed) for seed in seeds for row in rows for bits in BITS]
    for row, wbits, abits, seed in progress(jobs, model):
        _, attributes, values, settings = ROWS[row]
        method = row_method(row)
        overrides = [
            f"model={model}",
            f"wbits={wbits}",
            f"abits={abits}",
            f"seed={seed}",
            "data=glyphs",
            *keys,
            *settings,
        ]
        run = Run.of(compose("config", readable_arguments([*overrides, f"method={method.name}"])))
        identity = config_hash(run.identity | {"row": row, "class": attributes, "fields": values})
        place = results / run.bench.task.data.name / "ablation"
        path = place / f"{model}-w{wbits}a{abits}-s{seed}-{identity[:12]}.json"
        if not path.exists():
            cell = {"model": model, "row": row, "wbits": wbits, "abits": abits, "seed": seed}
            cell |= {"folder": place.parent.name, **measured(run, method), **provenance()}
            write_text(path, json.dumps(cell, ensure_ascii=False))
        yield json.loads(path.read_text(encoding="utf-8"))


def measured(run: Run, method: BitSplit) -> dict:
    bench, settings = run.bench, run.settings
    known = bench.known(method, settings)
    quantized = ptq.quantize(bench.task.module, bench.calibration, method=method, settings=settings, known=known)
    return {
        "fp32": bench.float_metrics,
        "quantized": bench.task.evaluate(quantized, "quantized"),
        "seconds": quantized.seconds,
        "data": bench.task.title,
    }


def all_cells(found: list[dict], folder: Path) -> list[dict]:
    """All cells of a data set, those found now and those of other networks, rows and seeds that lie in its `folder`."""
    there = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    by_place = {
        tuple(cell[key] for key in ("model", "row", "wbits", "abits", "seed")): cell for cell in [*there, *found]
    }
    models = in_order((cell["model"] for cell in by_place.values()), MODEL_TITLES)
    rows = [*ROWS, *(cell["row"] for cell in by_place.values())]
    places = sorted(by_place, key=lambda p: (models.index(p[0]), p[4], rows.index(p[1]), BITS.index((p[2], p[3]))))
    return [by_place[place] for place in places]


def minus_plus(cells: list[dict], found: list[dict]) -> dict:
    """Top-1 of a row's cells minus that of plus on the same images and seeds, in points, with half of the 95% interval
    and what they say; nothing for plus itself and where it has not been run."""
    keys = ("model", "wbits", "abits", "seed")
    plus = {tuple(cell[key] for key in keys): cell for cell in found if cell["row"] == PLUS}
    pairs = [(cell, plus.get(tuple(cell[key] for key in keys))) for cell in cells if cell["row"] != PLUS]
    answers = [[answers_of(cell["quantized"]) for cell in pair] for pair in pairs if pair[1]]
    if not answers:
        return {}
    theirs, ours = np.mean(answers, axis=0)
    points, interval = 100 * (theirs - ours).mean(), paired_interval(theirs - ours)
    p = paired_difference(*answers[0]).p if len(answers) == 1 else 0.0
    return {"minus_plus": round(points, 4), "interval": round(interval, 4), "verdict": verdict(points, interval, p)}


def table_of(found: list[dict]) -> Table:
    """A row for each cell of each network; where there are several seeds, means over them with half of the 95%
    interval of that mean."""
    table = pandas.DataFrame(
        [
            {**cell, **cell["quantized"], "s": sum(cell["seconds"].values()), **minus_plus([cell], found)}
            for cell in found
        ]
    )
    table["top1_fp32"] = [cell["fp32"]["top1"] for cell in found]
    table = table.drop(columns=["folder", "fp32", "quantized", "seconds", "machine", "versions", "correct"])
    rows = []
    for (model, row, wbits, abits), block in table.groupby(["model", "row", "wbits", "abits"], sort=False):
        change = minus_plus([found[place] for place in block.index], found)
        rows.append(
            {
                "network": f"{model_title(model)}, {block['top1_fp32'].iloc[0]:.2f}",
                "row": row,
                "wbits": wbits,
                "abits": abits,
                "top-1": f"{block['top1'].mean():.2f}{_half_interval(block['top1'])}",
                "minus plus": f"{signed(change['minus_plus'])} ± {change['interval']:.2f}" if change else "–",
                "": change.get("verdict", "–"),
                "dB": f"{block['logits_snr_db'].mean():.2f}{_half_interval(block['logits_snr_db'])}",
                "agreement": f"{block['agreement'].mean():.2f}",
                "s": f"{block['s'].mean():.0f}",
            }
        )
    shown = pandas.DataFrame(rows)
    shown.insert(1, "bits", bits_text(shown))
    shown = shown.drop(columns=["wbits", "abits"]).sort_values(["network", "bits"], key=_first_seen, kind="stable")
    seeds = sorted(table["seed"].unique())
    caption = (
        f"Ingredients of bit-split-plus on {found[0]['data']}: top-1 (behind a network's name that of floating "
        "point), signal-to-noise ratio of the logits, agreement with floating point and seconds of one thread; "
        f"calibration seeds {', '.join(map(str, seeds))}"
        + ("; ± is half the 95% interval of a mean over the seeds" if len(seeds) > 1 else "")
    )
    notes = (
        "minus plus: top-1 minus that of plus on the same images, in points, with half of the paired 95% interval; "
        "above, below or level by that and by McNemar's exact test",
    )
    return Table(caption, table, shown, heads=3, notes=notes)


def _half_interval(values: pandas.Series) -> str:
    if len(values) < 2:
        return ""
    return f" ± {stats.t.ppf(0.975, len(values) - 1) * values.sem():.2f}"


def _first_seen(values: pandas.Series) -> pandas.Series:
    return values.map({value: place for place, value in enumerate(values.unique())})


@in_one_line
def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", default=PAPER_CLASSIFIERS, help="default: the four of Table 4")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="calibration seeds (default: 0)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="further keys of run.py")
    parser.add_argument("--results", type=user_path, default=ROOT / "results", help="folder of the results")
    arguments = parser.parse_args()
    check_place(arguments.results, arguments.set)
    use_one_thread()
    with configurations():
        found = [
            cell
            for model in arguments.networks
            for cell in cells(model, arguments.rows, arguments.seeds, arguments.set, arguments.results)
        ]
    place = arguments.results / found[0]["folder"]
    print(write_table(table_of(all_cells(found, place / "ablation")), place, "table_ablation"))


if __name__ == "__main__":
    sys.exit(main())
