"""What a report is made from: one data set's records, and the paper's numbers where they may stand beside ours."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas

from bitsplit.errors import InputError
from bitsplit.report import record
from bitsplit.report.titles import (
    DEPTHWISE_CLASSIFIERS,
    FULL_COCO,
    FULL_IMAGENET,
    METHOD_TITLES,
    MODEL_TITLES,
    PAPER_CLASSIFIERS,
    PAPER_SHOWN,
    in_order,
)


@dataclass(frozen=True)
class Records:
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
        """The data set and its number of images, as the records say it."""
        return "; ".join(sorted({run["data"]["title"] for run in self.runs}))

    def paper_of(self, table: str) -> pandas.DataFrame | None:
        """The paper's numbers in one table and of the floating-point networks."""
        return None if self.paper is None else self.paper[self.paper["table"].isin([table, "fp32"])]

    def models(self, runs: list[dict]) -> list[str]:
        """Networks that a table of these runs shows: theirs, and the paper's where the data set always has them."""
        always = PAPER_CLASSIFIERS if self.name in PAPER_SHOWN else ()
        return in_order([*always, *(run["model"] for run in runs)], MODEL_TITLES)


def read_records(results: Path, name: str) -> Records:
    """The whole records of results/<name>; a broken one counts as absent. A folder that is not there has none.
    InputError where those of one network are of different weights or images, which no table could show as one.

    >>> read_records(Path("results"), "no_such_data").runs
    []
    """
    runs = list(filter(None, (record.read(path) for path in sorted((results / name / "runs").glob("*.json")))))
    _check_alike(results / name / "runs", runs)
    readers = {FULL_IMAGENET: imagenet_paper, FULL_COCO: coco_paper}
    published = name in readers and (results / "paper").is_dir()  # not in results of somebody's own
    paper = readers[name](results / "paper") if published else None
    return Records(name, _sorted(runs), paper)


def _check_alike(folder: Path, runs: list[dict]) -> None:
    first: dict[str, tuple] = {}
    for run in runs:
        data = {key: value for key, value in run["config"]["data"].items() if key != "files"}
        facts = run["weights"]["sha256"], run["data"]["title"], data
        if first.setdefault(run["model"], facts) != facts:
            what = "weights" if first[run["model"]][0] != facts[0] else "images or preprocessing"
            raise InputError(
                f"{folder} has records of {run['model']} with different {what}: keep them in folders of their own "
                "(results=FOLDER)"
            )


def standard(runs: list[dict]) -> list[dict]:
    """The runs with a method's own settings on labelled images."""
    return [run for run in labelled(runs) if run["variant"] == ""]


def of_papers_tables(runs: list[dict]) -> list[dict]:
    """The runs of all networks but those that have a table of their own."""
    return [run for run in runs if run["model"] not in DEPTHWISE_CLASSIFIERS]


def labelled(runs: list[dict]) -> list[dict]:
    """The runs that have an accuracy."""
    return [run for run in runs if run["metrics"]["quantized"].get("top1") is not None]


def _sorted(runs: list[dict]) -> list[dict]:
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


def imagenet_paper(folder: Path) -> pandas.DataFrame:
    """The paper's numbers on ImageNet as `Records.paper`, from the CSV files in `folder`."""
    sweeps, table4 = (
        pandas.read_csv(folder / name, dtype={"top1": str, "top5": str})  # the digits as published
        for name in ("imagenet_bitwidth_sweep.csv", "imagenet_table4.csv")
    )
    table4 = table4[table4["method"] != "fp32"].assign(table="table4")
    columns = ["table", "model", "method", "wbits", "abits", "top1", "top5"]
    numbers = pandas.concat([sweeps, table4])[columns]
    return numbers.rename(columns={"top1": "paper_top1", "top5": "paper_top5"})


def coco_paper(folder: Path) -> pandas.DataFrame:
    """The paper's numbers on COCO as `Records.paper`, from the CSV file in `folder`."""
    numbers = pandas.read_csv(folder / "coco_table5.csv")
    return numbers.rename(columns={"task": "kind"} | {name: f"paper_{name}" for name in ("ap", "ap50", "ap75")})
