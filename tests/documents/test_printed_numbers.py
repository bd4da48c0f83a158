"""Every result printed in the documents is the number on disk, to the last digit printed.

A number in a table is looked up by what its row, its column and the line above the table say (data set, network,
method, bit-widths, convention, boxes or masks, a standard deviation behind the mean); where a table says "not run"
there must be no record. A number in the prose must be in a table of its section, or in one of those under results/
that the section links, or in their notes; where it links none, in any of them.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas
import pytest
from conftest import ROOT
from test_documents import DOCUMENTS, every_document, prose

from bitsplit.report.titles import METHOD_TITLES, MODEL_TITLES
from bitsplit.settings import CONVENTIONS

NUMBER = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)")
NO_RESULTS = {  # by what stands around them
    "Python 3.11 or newer": "the oldest Python that is supported",
    "expect up to 0.2 points": "how far another processor may differ: a bound, not a result",
    "momentum of 0.1": "a setting of the authors",
}
BITS = re.compile(r"W(?P<w>\d+)A(?P<a>\d+)|A(?P<a2>\d+)W(?P<w2>\d+)")
DATA = {"the paper": "paper", "ImageNet-500": "imagenet_500", "glyphs_coco": "glyphs_coco", "glyphs": "glyphs"}
METRICS = {"boxes": "bbox_ap", "masks": "segm_ap"}  # by what the row or the column says; else top1
VARIANTS = {"bitsplit": ""} | {name: f"convention={name}" for name in CONVENTIONS[1:]}  # by convention
NOT_RUN = "not run"


def measured() -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """What the records with a method's own settings, means over their seeds, and the paper say of a network; and the
    standard deviations over the seeds."""
    rows = []
    for path in (ROOT / "results").glob("*/runs/*.json"):
        run = json.loads(path.read_text())
        cell = {"data": run["data"]["name"], "model": run["model"]}
        rows.append(cell | {"method": "fp32"} | run["metrics"]["fp32"])
        if run["variant"] in VARIANTS.values():
            keys = ("method", "wbits", "abits", "variant")
            rows.append(cell | {key: run[key] for key in keys} | run["metrics"]["quantized"])
    records = pandas.DataFrame(rows).fillna({"wbits": 32, "abits": 32, "variant": ""})
    cells = records.groupby(["data", "model", "method", "wbits", "abits", "variant"], as_index=False)
    paper = [pandas.read_csv(path) for path in (ROOT / "results/paper").glob("*.csv")]
    for table in paper:
        for task in METRICS.values() if "task" in table else ():
            table[task] = table["ap"].where(table["task"] == task.removesuffix("_ap"))
    means = [cells.mean(numeric_only=True), *(table.assign(data="paper", variant="") for table in paper)]
    return pandas.concat(means, ignore_index=True), cells.std(numeric_only=True)


def numbers_in(tables: Iterable[Path]) -> set[float]:
    """Every number of these generated tables, from their CSV files and from their captions and notes."""
    numbers = set()
    for path in {path.with_suffix(".csv") for path in tables}:
        if path.exists():
            numbers |= set(pandas.read_csv(path).select_dtypes("number").to_numpy().ravel())
        if (page := path.with_suffix(".md")).exists() and page not in DOCUMENTS:
            lines = [line for line in page.read_text().splitlines() if not line.startswith("|")]
            numbers |= {float(number) for number in NUMBER.findall("\n".join(lines))}
    return numbers


MEASURED, SPREADS = measured()
EVERYTHING = numbers_in(path for kind in ("csv", "md") for path in (ROOT / "results").rglob(f"*.{kind}"))


def has(values, printed: str) -> bool:
    """Whether a value, rounded to as many digits as are printed, is the printed number, which has no sign."""
    digits = len(printed.partition(".")[2])
    return any(f"{abs(value):.{digits}f}" == printed for value in values)


def tables(text: str):
    """(the last line of prose above it, header cells, rows of cells) of every Markdown table."""
    above, lines = "", text.splitlines()
    while lines:
        line = lines.pop(0)
        if not line.startswith("|"):
            above = line or above
            continue
        rows = [line]
        while lines and lines[0].startswith("|"):
            rows.append(lines.pop(0))
        header, _, *body = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
        yield above, header, body


def mentioned(words: str, titles: dict[str, str]) -> str | None:
    """The name whose title the words hold; the longest of several."""
    names = [name for name, title in titles.items() if title.lower() in words.lower()]
    return max(names, key=lambda name: len(titles[name]), default=None)


def bits_in(words: str) -> list[tuple[int, int]]:
    return [(int(m["w"] or m["w2"]), int(m["a"] or m["a2"])) for m in BITS.finditer(words)]


def candidates(above: str, label: str, headers: list[str], place: int) -> pandas.Series | set[float]:
    """What the number at `place` of a cell may be; `headers` are those of the cell's column and of all left of it."""
    column = headers[-1]
    model = mentioned(label, MODEL_TITLES) or mentioned(column, MODEL_TITLES)
    data = next((name for words in (label, *headers[::-1]) for key, name in DATA.items() if key in words), None)
    numbers = SPREADS if place and "standard deviation" in above else MEASURED
    records = numbers[(numbers["model"] == model) & ((numbers["data"] == data) | (data is None))]
    if records.empty:
        return EVERYTHING
    convention = next((name for name in CONVENTIONS if f"{name}:" in label), "bitsplit")
    records = records[records["variant"] == VARIANTS[convention]]
    method = "fp32" if "floating point" in label + column else mentioned(label, METHOD_TITLES)
    records = records[records["method"] == method]
    if method != "fp32":
        bits = bits_in(column) or bits_in(label) or bits_in(above)[place : place + 1]
        asked = [pair in bits for pair in zip(records["wbits"], records["abits"], strict=True)]
        records = records[np.array(asked, dtype=bool)]  # also where a method has no record
    metric = next((name for words, name in METRICS.items() if words in label + column), "top1")
    return records[metric].dropna()


def wrong_in_tables(text: str) -> list[str]:
    wrong = []
    for above, headers, rows in tables(text):
        for label, *cells in rows:
            for column, cell in enumerate(cells, start=1):
                left = headers[: column + 1]
                if cell == NOT_RUN and len(candidates(above, label, left, 0)):
                    wrong.append(f"{label} | {headers[column]}: has a record")
                for place, printed in enumerate(NUMBER.findall(cell)):
                    if not has(candidates(above, label, left, place), printed):
                        wrong.append(f"{label} | {headers[column]}: {printed}")
    return wrong


def wrong_in_prose(text: str, folder: Path = ROOT) -> list[str]:
    """`folder`: of the page."""
    return [printed for section in re.split(r"(?m)^(?=##+ )", text) for printed in _wrong_in_section(section, folder)]


def _wrong_in_section(text: str, folder: Path) -> list[str]:
    links = [folder / link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    tables_below = [path for path in links if path.suffix == ".md" and path.with_suffix(".csv").exists()]
    own = {float(number) for line in text.splitlines() if line.startswith("|") for number in NUMBER.findall(line)}
    known = numbers_in(tables_below) | own if tables_below else EVERYTHING
    text = "\n".join(line for line in text.splitlines() if not line.startswith("|"))
    text = re.sub(r"`[^`]*`|\$[^$]*\$|\]\([^)]*\)", "", text)
    text = " ".join(text.split())
    for around in NO_RESULTS:
        text = text.replace(around, "")
    return [printed for printed in NUMBER.findall(text) if not has(known, printed)]


@every_document
def test_tables_print_the_numbers_on_disk(path):
    assert wrong_in_tables(prose(path)) == []


@every_document
def test_prose_prints_numbers_on_disk(path):
    assert wrong_in_prose(prose(path), path.parent) == []


def test_every_exception_is_still_needed():
    text = " ".join(" ".join(prose(path).split()) for path in DOCUMENTS)
    assert [around for around in NO_RESULTS if around not in text] == []


@pytest.mark.parametrize(
    ("document", "printed", "instead"),
    [
        ("README.md", "| floating point | 84.06 |", "| floating point | 84.07 |"),
        ("README.md", "| LAPQ | 82.50 | not run |", "| LAPQ | not run | 82.50 |"),
        ("results/README.md", "| **Bit-split** | 83.96 / 82.61 |", "| **Bit-split** | 82.61 / 83.96 |"),
        ("results/README.md", "| floating point | 84.06 |", "| floating point | 84.07 |"),
        ("results/README.md", "| 85.60 | 84.80 | 11.80 |", "| 85.60 | 84.80 | 11.60 |"),
        ("results/README.md", "TF-Lite | 69.76 | 69.57 | 55.53 |", "TF-Lite | 69.76 | 69.57 | 69.11 |"),
        ("results/README.md", "| A4W4, TF-Lite | 57.5 | 67.2 | 38.5 |", "| A4W4, TF-Lite | 57.5 | 38.5 | 67.2 |"),
        ("results/README.md", "| qdrop: **Bit-split** | 83.96 / 82.13 |", "| qdrop: **Bit-split** | 83.96 / 82.61 |"),
        ("docs/coco.md", "| 30.1 | 30.2 | 29.6 |", "| 30.2 | 30.1 | 29.6 |"),
    ],
)
def test_a_wrong_number_is_found(document, printed, instead):
    text = prose(ROOT / document)
    assert text.count(printed) == 1
    assert wrong_in_tables(text.replace(printed, instead))


def test_a_wrong_number_in_the_prose_is_found():
    assert wrong_in_prose("TF-Lite gains 0.46 points") == [] and wrong_in_prose("it gains 123.46 points") == ["123.46"]
    elsewhere = "0.59 points ([depthwise](results/glyphs/depthwise.md))"
    assert wrong_in_prose(elsewhere) == ["0.59"] and wrong_in_prose(f"{elsewhere}\n| a | 0.59 |") == []
    assert wrong_in_prose(f"{elsewhere}\n## Another section\n0.59") == ["0.59"]
