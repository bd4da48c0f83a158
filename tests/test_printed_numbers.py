"""Every result printed in the documents is the number on disk, to the last digit printed.

A number in a table is looked up by what its row, its column and the line above the table say (data set, network,
method, bit-widths); one in the prose must be a number of a table, or of its notes, under results/.
"""

import json
import re

import pandas
import pytest
from conftest import ROOT
from test_documents import DOCUMENTS, every_document, prose

from bitsplit.report.titles import METHOD_TITLES, MODEL_TITLES

NUMBER = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)")
NO_RESULTS = {  # by what stands around them
    "Python 3.11 or newer": "the oldest Python that is supported",
    "expect up to 0.2 points": "how far another processor may differ: a bound, not a result",
    "momentum of 0.1": "a setting of the authors",
}
BITS = re.compile(r"W(?P<w>\d+)A(?P<a>\d+)|A(?P<a2>\d+)W(?P<w2>\d+)")
DATA = {"the paper": "paper", "ImageNet-500": "imagenet_500", "glyphs": "glyphs"}


def measured() -> pandas.DataFrame:
    """Top-1 of every record with a method's own settings, and of the paper."""
    rows = []
    for path in (ROOT / "results").glob("*/runs/*.json"):
        run = json.loads(path.read_text())
        if "top1" not in run["metrics"]["fp32"]:
            continue
        cell = {"data": run["data"]["name"], "model": run["model"]}
        rows.append(cell | {"method": "fp32", "top1": run["metrics"]["fp32"]["top1"]})
        if run["variant"] == "":
            own = {key: run[key] for key in ("method", "wbits", "abits")}
            rows.append(cell | own | {"top1": run["metrics"]["quantized"]["top1"]})
    paper = [pandas.read_csv(path) for path in (ROOT / "results/paper").glob("imagenet_*.csv")]
    return pandas.concat([pandas.DataFrame(rows), *(table.assign(data="paper") for table in paper)], ignore_index=True)


def everything() -> set[float]:
    """Every number of every CSV file and of every table's caption and notes under results/."""
    found = set()
    for path in (ROOT / "results").rglob("*.csv"):
        found |= set(pandas.read_csv(path).select_dtypes("number").to_numpy().ravel())
    for path in (ROOT / "results").rglob("*.md"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("|")]
        found |= {float(number) for number in NUMBER.findall("\n".join(lines))}
    return found


MEASURED, EVERYTHING = measured(), everything()


def has(values, printed: str) -> bool:
    """Whether a value, rounded to as many digits as are printed, is the printed number."""
    digits = len(printed.partition(".")[2])
    return any(f"{value:.{digits}f}" == printed for value in values)


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
    found = [name for name, title in titles.items() if title.lower() in words.lower()]
    return max(found, key=lambda name: len(titles[name]), default=None)


def bits_in(words: str) -> list[tuple[int, int]]:
    return [(int(m["w"] or m["w2"]), int(m["a"] or m["a2"])) for m in BITS.finditer(words)]


def candidates(above: str, label: str, headers: list[str], place: int) -> pandas.Series | set[float]:
    """What the number at `place` of a cell may be; `headers` are those of the cell's column and of all left of it."""
    column = headers[-1]
    model = mentioned(label, MODEL_TITLES) or mentioned(column, MODEL_TITLES)
    data = next((name for words in (label, *headers[::-1]) for key, name in DATA.items() if key in words), None)
    found = MEASURED[(MEASURED["model"] == model) & ((MEASURED["data"] == data) | (data is None))]
    if found.empty:
        return EVERYTHING
    method = "fp32" if "floating point" in label + column else mentioned(label, METHOD_TITLES)
    found = found[found["method"] == method]
    if method != "fp32":
        bits = bits_in(column) or bits_in(above)[place : place + 1]
        found = found[[pair in bits for pair in zip(found["wbits"], found["abits"], strict=True)]]
    return found["top1"].dropna()


def wrong_in_tables(text: str) -> list[str]:
    wrong = []
    for above, headers, rows in tables(text):
        for label, *cells in rows:
            for column, cell in enumerate(cells, start=1):
                for place, printed in enumerate(NUMBER.findall(cell)):
                    if not has(candidates(above, label, headers[: column + 1], place), printed):
                        wrong.append(f"{label} | {headers[column]}: {printed}")
    return wrong


def wrong_in_prose(text: str) -> list[str]:
    text = "\n".join(line for line in text.splitlines() if not line.startswith("|"))
    text = re.sub(r"`[^`]*`|\$[^$]*\$|\]\([^)]*\)", "", text)
    text = " ".join(text.split())
    for around in NO_RESULTS:
        text = text.replace(around, "")
    return [printed for printed in NUMBER.findall(text) if not has(EVERYTHING, printed)]


@every_document
def test_tables_print_the_numbers_on_disk(path):
    assert wrong_in_tables(prose(path)) == []


@every_document
def test_prose_prints_numbers_on_disk(path):
    assert wrong_in_prose(prose(path)) == []


def test_every_exception_is_still_needed():
    text = " ".join(" ".join(prose(path).split()) for path in DOCUMENTS)
    assert [around for around in NO_RESULTS if around not in text] == []


@pytest.mark.parametrize(
    ("printed", "instead"),
    [
        ("| **Bit-split** | 83.80 / 82.60 |", "| **Bit-split** | 82.60 / 83.80 |"),
        ("| floating point | 84.06 |", "| floating point | 84.07 |"),
        ("| 85.60 | 84.80 | 11.80 |", "| 85.60 | 84.80 | 11.60 |"),
        ("TF-Lite | 69.76 | 69.57 | 55.53 |", "TF-Lite | 69.76 | 69.57 | 69.11 |"),
    ],
)
def test_a_wrong_number_is_found(printed, instead):
    text = prose(ROOT / "README.md")
    assert text.count(printed) == 1
    assert wrong_in_tables(text.replace(printed, instead))


def test_a_wrong_number_in_the_prose_is_found():
    assert wrong_in_prose("TF-Lite gains 0.46 points") == [] and wrong_in_prose("it gains 123.46 points") == ["123.46"]
