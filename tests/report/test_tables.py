"""All tables at once: those of the committed records, those of other records, and the command line that writes them."""

import re
import shutil
import subprocess
import sys

import pandas
from conftest import ROOT
from records import DATA_SETS, glyphs, make_run, report, table_files, unlabelled, write_runs

from bitsplit.report import tables
from bitsplit.report.records import Records
from bitsplit.report.runs_table import runs_table

# Tables that programs under experiments/ write beside the report's.
OF_EXPERIMENTS = ("deploy", "table_ablation", "table_rivals")


def test_tables_are_those_of_the_committed_records(tmp_path):
    """`make tables` changes nothing."""
    shutil.copytree(ROOT / "results" / "paper", tmp_path / "paper")
    for name in DATA_SETS:
        shutil.copytree(ROOT / "results" / name / "runs", tmp_path / name / "runs")
    assert report(tmp_path).returncode == 0
    for name in DATA_SETS:
        committed = table_files(ROOT / "results" / name)
        of_reports = {file: text for file, text in committed.items() if file.split(".")[0] not in OF_EXPERIMENTS}
        assert table_files(tmp_path / name) == of_reports, name


def test_every_number_of_the_documented_results_is_in_the_tables():
    sections, _ = (ROOT / "results" / "README.md").read_text().split("## Other threads")  # behind it, a bound
    sections = re.sub("<!--.*?-->", "", sections)
    generated = [path for path in (ROOT / "results").rglob("*.md") if path.name != "README.md"]
    texts = "".join(path.read_text() for path in generated)
    texts += (ROOT / "results" / "paper" / "imagenet_bitwidth_sweep.csv").read_text()
    shown = re.findall(r"\b\d{1,2}\.\d{1,2}\b", sections)
    assert len(shown) > 20
    assert not [number for number in shown if not re.search(rf"\b{re.escape(number)}\b", texts)]


def test_unlabelled_data_have_the_table_of_runs_alone(tmp_path):
    records = Records("folder_mine", [unlabelled(make_run(data="folder_mine"))])
    assert list(tables.write_tables(records, tmp_path)) == ["runs"]
    shown = runs_table(records).shown.iloc[0]
    assert shown["top1"] == shown["interval95"] == shown["drop"] == "–" and float(shown["agreement"]) > 0
    assert pandas.read_csv(tmp_path / "runs.csv")[["top1", "drop"]].isna().all(axis=None)


def test_table_of_runs_has_every_record_with_its_drops():
    runs = [make_run(top1=80.5), make_run(method="tflite", variant="batch_norm.mode=reestimate", seed=3)]
    table = runs_table(glyphs(*runs)).cells
    assert list(table["method"]) == ["bitsplit", "tflite (batch_norm.mode=reestimate)"]
    assert list(table["drop"]) == [3.56, 4.06] and list(table["drop_bn"]) == [3.61, 4.11]
    assert list(table["seed"]) == [0, 3]


def test_command_line_writes_all_tables_and_prints_the_one_asked_for(tmp_path):
    write_runs(tmp_path, make_run(), make_run(data="imagenet_500", top1=75.0), make_run(data="imagenettes"))
    done = report(tmp_path, "table4", "imagenet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (tmp_path / "imagenet_500" / "table4.md").read_text().strip()
    assert not (tmp_path / "glyphs" / "table4.md").exists() and not (tmp_path / "imagenettes" / "table4.md").exists()
    done = report(tmp_path)
    assert done.returncode == 0 and done.stdout == ""
    before = table_files(tmp_path / "glyphs")
    assert report(tmp_path).returncode == 0 and table_files(tmp_path / "glyphs") == before
    for name in ("glyphs", "imagenet_500"):
        names = ("runs", "table4", "table4_equal", "table_both")
        expected = {f"{table}.{ending}" for table in names for ending in ("md", "csv", "tex")}
        assert set(table_files(tmp_path / name)) == expected


def test_no_records_is_one_line(tmp_path):
    write_runs(tmp_path, make_run())
    for arguments, message in {
        ("table4", "imagenet"): "error: no records of imagenet",
        ("table_weights", "glyphs"): "error: no records for table_weights of glyphs",
    }.items():
        done = report(tmp_path, *arguments)
        assert done.returncode == 2 and done.stderr.startswith(message) and done.stderr.count("\n") == 1


def test_report_needs_neither_torch_nor_matplotlib():
    code = "import sys, bitsplit.report.__main__; print({'torch', 'matplotlib', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"


def test_the_name_of_a_data_set_is_not_that_of_another(tmp_path):
    names = ("glyphs", "glyphs_coco", "imagenet", "imagenet_500")
    write_runs(tmp_path, *(make_run(data=name) for name in names))
    for name, written in (("glyphs", {"glyphs"}), ("imagenet", {"imagenet", "imagenet_500"})):
        done = report(tmp_path, "runs", name)
        assert done.returncode == 0, done.stderr
        tables = {path.parent.name for path in tmp_path.glob("*/runs.md")}
        assert tables == written
        for path in tmp_path.glob("*/runs.md"):
            path.unlink()
