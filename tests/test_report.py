"""Tables from records: their numbers, the paper's beside them only on the paper's data, and the files as committed."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from conftest import ROOT, SHARED
from scipy.stats import norm

from bitsplit import record, report

RECORDS = sorted((ROOT / "results").glob("*/runs/*.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: f"{path.parts[-3]}/{path.stem}")
def test_committed_records_fit_the_schema_and_their_names(path):
    run = record.read(path)
    assert run is not None
    expected = record.run_path(
        ROOT / "results",
        run["data"]["name"],
        *(run[k] for k in ("model", "method", "wbits", "abits", "seed", "variant")),
    )
    assert path == expected
    assert record.config_hash(run["config"]) == run["config_hash"]
    assert not run["commit"].endswith("-dirty") and run["commit"] != "unknown"


def test_tables_are_those_of_the_committed_records(tmp_path):
    """`make tables` changes nothing."""
    shutil.copytree(ROOT / "results", tmp_path / "results")
    for runs in (tmp_path / "results").glob("*/runs"):
        for path in runs.parent.glob("*.md"):
            path.unlink()
    command = [sys.executable, "-m", "bitsplit.report", "--results", str(tmp_path / "results")]
    subprocess.run(command, check=True, cwd=ROOT)
    written = [path for path in (ROOT / "results").rglob("*") if path.suffix in (".md", ".csv", ".tex")]
    assert len(written) > 8
    for path in written:
        assert (tmp_path / "results" / path.relative_to(ROOT / "results")).read_text() == path.read_text(), path


def paper() -> pandas.DataFrame:
    return pandas.read_csv(ROOT / "results" / "paper" / "imagenet_table4.csv")


@pytest.fixture
def runs() -> list[dict]:
    found = [json.loads(path.read_text()) for path in RECORDS]
    return [run for run in found if run["data"]["name"] == "glyphs" and run["model"] == "resnet18"]


def test_table4_shows_what_ran_and_says_so_of_the_rest(runs):
    table = report.table4(runs, paper(), beside_paper=False).set_index(["setting", "method"])
    by_cell = {(f"A{r['abits']}W{r['wbits']}", report.METHOD_TITLES[r["method"]]): r for r in runs}
    for setting in ("A8W4", "A4W4"):
        for method in ("TF-Lite", "Bit-split"):
            shown = float(table.loc[(setting, method), "ResNet-18"].split(" ±")[0])
            assert shown == round(by_cell[setting, method]["metrics"]["quantized"]["top1"], 2)
    others = table.drop(columns="ResNet-18").to_numpy().ravel()
    assert set(others) == {"not run"}
    assert table.loc[("A4W4", "LAPQ"), "ResNet-18"] == "not run"
    assert not table.map(lambda text: "paper" in text).to_numpy().any()


def test_every_number_of_the_readmes_results_is_in_the_tables():
    section = (ROOT / "README.md").read_text().split("## Results")[1].split("\n## ")[0]
    tables = "".join(path.read_text() for path in (ROOT / "results").rglob("*.md") if path.parent.name != "paper")
    tables += (ROOT / "results" / "paper" / "imagenet_bitwidth_sweep.csv").read_text()
    shown = re.findall(r"\b\d{1,2}\.\d{1,2}\b", section)
    assert len(shown) > 20
    assert not [number for number in shown if not re.search(rf"\b{re.escape(number)}\b", tables)]


def test_the_papers_numbers_stand_beside_ours_where_asked(runs):
    table = report.table4(runs, paper(), beside_paper=True).set_index(["setting", "method"])
    assert table.loc[("A4W4", "Bit-split"), "ResNet-50"] == "not run (paper 73.7)"
    assert table.loc[("A4W4", "LAPQ"), "VGG-16-BN"] == "not run"


@pytest.mark.parametrize(("percent", "images"), [(85.6, 500), (50, 100), (0, 10), (99.9, 50_000)])
def test_interval_is_the_binomial_one(percent, images):
    share = percent / 100
    expected = 100 * norm.ppf(0.975) * (share * (1 - share) / images) ** 0.5
    assert report.interval(percent, images) == pytest.approx(expected, rel=1e-3)


def test_no_records_is_one_line(tmp_path):
    command = [sys.executable, "-m", "bitsplit.report", "table4", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.startswith("error: no records") and done.stderr.count("\n") == 1


def test_paper_numbers_are_the_transcribed_ones():
    if not (SHARED / "paper").is_dir():
        pytest.skip("the transcription of the paper's tables is not beside the project")
    for path in (SHARED / "paper").glob("*.csv"):
        assert (ROOT / "results" / "paper" / path.name).read_text() == path.read_text()


def test_report_needs_no_torch():
    code = "import sys, bitsplit.report; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(ROOT))
