"""What a report is made from: one data set's records, and the paper's numbers where they may stand beside ours."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas

from bitsplit import record
from bitsplit.report.titles import (
    FULL_COCO,
    FULL_IMAGENET,
    METHOD_TITLES,
    MODEL_TITLES,
    PAPER_MODELS,
    PAPER_SHOWN,
    in_order,
)


@dataclass(frozen=True)
class Folder:
    """The records of results/<name>, in the order of every table.

    `paper` has one row a number of the paper's: of ImageNet, table ("table4", "weights", "both", or "fp32" for all of
    them), model, method, wbits, abits, paper_top1 and paper_top5 as published (text); of COCO, model, kind, method,
    wbits, abits, paper_ap, paper_ap50 and paper_ap75; None where ours are of other data.
    """

    name: str
    runs: list[dict] = field(repr=False)
    paper: pandas.DataFrame | None = field(default=None, repr=False)

    @property
    def title(self) -> str:
        """The data set and its number of pictures, as the records say it."""
        return "; ".join(sorted({run["data"]["title"] for run in self.runs}))

    def paper_of(self, table: str) -> pandas.DataFrame | None:
        """The paper's numbers in one table and of the floating-point networks."""
        return None if self.paper is None else self.paper[self.paper["table"].isin([table, "fp32"])]

    def models(self, runs: list[dict]) -> list[str]:
        """Networks that a table of these runs shows: theirs, and the paper's where the folder always has them."""
        always = PAPER_MODELS if self.name in PAPER_SHOWN else ()
        return in_order([*always, *(run["model"] for run in runs)], MODEL_TITLES)


def read(results: Path, name: str) -> Folder:
    """The whole records of results/<name>; a broken one counts as absent. A folder that is not there has none.

    >>> read(Path("results"), "no_such_data").runs
    []
    """
    found = [record.read(path) for path in sorted((results / name / "runs").glob("*.json"))]
    numbers = {FULL_IMAGENET: _imagenet_paper, FULL_COCO: _coco_paper}
    there = name in numbers and (results / "paper").is_dir()  # not in results of somebody's own
    paper = numbers[name](results / "paper") if there else None
    return Folder(name, _ordered([run for run in found if run]), paper)


def standard(runs: list[dict]) -> list[dict]:
    """The runs with a method's own settings on labelled pictures."""
    return [run for run in labelled(runs) if run["variant"] == ""]


def labelled(runs: list[dict]) -> list[dict]:
    """The runs that have an accuracy."""
    return [run for run in runs if run["metrics"]["quantized"].get("top1") is not None]


def _ordered(runs: list[dict]) -> list[dict]:
    """By network, from many bits to few, by method, seed and variant."""
    models, methods = (
        {name: place for place, name in enumerate(in_order((run[key] for run in runs), titles))}
        for key, titles in (("model", MODEL_TITLES), ("method", METHOD_TITLES))
    )
    return sorted(
        runs,
        key=lambda run: (
            models[run["model"]],
            -run["wbits"],
            -run["abits"],
            methods[run["method"]],
            run["seed"],
            run["variant"],
        ),
    )


def _imagenet_paper(folder: Path) -> pandas.DataFrame:
    sweeps, table4 = (
        pandas.read_csv(folder / name, dtype={"top1": str, "top5": str})  # the digits as published
        for name in ("imagenet_bitwidth_sweep.csv", "imagenet_table4.csv")
    )
    table4 = table4[table4["method"] != "fp32"].assign(table="table4")
    columns = ["table", "model", "method", "wbits", "abits", "top1", "top5"]
    numbers = pandas.concat([sweeps, table4])[columns]
    return numbers.rename(columns={"top1": "paper_top1", "top5": "paper_top5"})


def _coco_paper(folder: Path) -> pandas.DataFrame:
    numbers = pandas.read_csv(folder / "coco_table5.csv")
    return numbers.rename(columns={"task": "kind"} | {name: f"paper_{name}" for name in ("ap", "ap50", "ap75")})
