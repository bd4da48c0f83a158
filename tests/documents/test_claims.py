"""What README and docs say of one method against another holds within the paired intervals of the records.

A paragraph that says so names the cells in a comment behind it, which nobody sees on the page:

    <!-- claim: glyphs W2A4 bitsplit_plus > bitsplit_lattice on resnet18 resnet50 -->   above on each of the networks
    <!-- claim: glyphs W2A4 bitsplit_plus = bitsplit_lattice on vgg16_bn -->            level on each
    <!-- claim: glyphs W3A3 bitsplit_plus loses < 0.7 bitsplit on resnet18 resnet50 --> of the mean over the networks
    <!-- claim: glyphs/qdrop W4A4 bitsplit_plus > bitsplit on resnet50 -->              under another convention
    <!-- claim: rivals W3A3 bitsplit_plus > brevitas_gptq/after on resnet18 -->         the rivals' own records
"""

import json
import re

import numpy as np
import pytest
from conftest import ROOT

from bitsplit.report import record
from bitsplit.report.accuracy import paired_interval
from bitsplit.report.paired import answers_of, paired_difference, verdict

PAGES = [ROOT / "README.md", ROOT / "results/README.md", *sorted((ROOT / "docs").glob("*.md"))]
CLAIM = re.compile(
    r"<!-- claim: (?P<data>\S+) W(?P<wbits>\d+)A(?P<abits>\d+) (?P<first>\S+) "
    r"(?P<relation>>|=|loses < (?P<share>[\d.]+)) (?P<second>\S+) on (?P<models>[^>]+) -->"
)
ORDER = re.compile(
    r"\b(is|are|lies?|stays?) (above|below|level|ahead)|\bloses? (less|more|at most|half|about|no more)|\bbeats?\b"
    r"|\bbetter than\b|\bmore accurate\b|\border of the methods",
    re.IGNORECASE,
)
OF_METHODS = re.compile(r"\b(plus|lattice|bit-split|ECAQ|TF-Lite|TensorRT|LAPQ|Qronos|GPTQ|methods)\b")


def claims() -> list[tuple[str, re.Match]]:
    found = [(page, match) for page in PAGES for match in re.finditer("<!-- claim:.*?-->", page.read_text())]
    return [(str(page.relative_to(ROOT)), match.group()) for page, match in found]


def records_of(data: str, model: str, method: str, wbits: str, abits: str) -> dict[int, dict]:
    """The metrics of a cell, by calibration seed."""
    if data == "rivals":
        rival, _, batch_norm = method.partition("/")
        wanted = [model, rival, batch_norm or "none", int(wbits), int(abits)]
        keys = ("network", "rival", "batch_norm", "wbits", "abits")
        runs = [json.loads(path.read_text()) for path in (ROOT / "results/glyphs/rivals").glob("*.json")]
        (run,) = [run for run in runs if [run[key] for key in keys] == wanted]
        return {0: {"quantized": run["metrics"]}}
    data, _, convention = data.partition("/")
    variant = f"-convention={convention}" if convention else ""
    paths = (ROOT / f"results/{data}/runs").glob(f"{model}-{method}-w{wbits}a{abits}-s?{variant}.json")
    return {run["seed"]: run["metrics"] for run in map(record.read, paths)}


def mean_answers(records: dict[int, dict], seeds: set[int], network: str = "quantized") -> np.ndarray:
    """How often each image is right, over the seeds."""
    return np.mean([answers_of(records[seed][network]) for seed in seeds], axis=0)


def holds(claim: str) -> bool:
    """Over the seeds that both methods have, as the tables' means are."""
    match = CLAIM.fullmatch(claim)
    assert match, f"{claim} is none of the forms above"
    verdicts, lost = [], []
    for model in match["models"].split():
        place = match["data"], model
        first, second = (records_of(*place, match[m], match["wbits"], match["abits"]) for m in ("first", "second"))
        seeds = first.keys() & second.keys()
        one, other = mean_answers(first, seeds), mean_answers(second, seeds)
        if len(seeds) == 1:
            verdicts.append(paired_difference(one > 0, other > 0).verdict)
        else:
            verdicts.append(verdict(100 * (one - other).mean(), paired_interval(one - other)))
        if share := float(match["share"] or 0):
            lost.append((1 - share) * mean_answers(second, seeds, "fp32") - one + share * other)
    if lost:
        mean = np.mean(lost, axis=0)
        return 100 * mean.mean() + paired_interval(mean) < 0
    wanted = {">": "above", "=": "level"}[match["relation"]]
    return set(verdicts) == {wanted}


@pytest.mark.parametrize("page, claim", claims())
def test_claims_hold_within_their_intervals(page, claim):
    assert holds(claim), f"{page}: the records do not support {claim}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_paragraph_about_an_order_of_methods_names_its_cells(page):
    paragraphs = re.split(r"\n\s*\n", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    prose = [paragraph for paragraph in paragraphs if not paragraph.lstrip().startswith("|")]
    bare = [
        paragraph
        for paragraph in prose
        if ORDER.search(paragraph) and OF_METHODS.search(paragraph) and "<!-- claim:" not in paragraph
    ]
    assert bare == []


def test_a_claim_that_the_records_do_not_support_is_found():
    assert not holds("<!-- claim: glyphs W3A3 tflite > bitsplit on resnet18 -->")
    assert not holds("<!-- claim: glyphs W3A3 tflite = bitsplit on resnet18 -->")
    assert not holds("<!-- claim: glyphs/brecq W4A4 bitsplit_plus = bitsplit on resnet50 -->")
    assert not holds("<!-- claim: glyphs W3A3 tflite loses < 0.9 bitsplit on resnet18 -->")
    assert holds("<!-- claim: glyphs W3A3 bitsplit > tflite on resnet18 -->")
    assert holds("<!-- claim: glyphs W3A3 bitsplit loses < 0.9 tflite on resnet18 -->")
