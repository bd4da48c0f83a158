"""Tables from records: their numbers, the paper's beside them only on the paper's data, and the files as committed."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
from conftest import ROOT, SHARED
from scipy.stats import norm, sem, t

from bitsplit import record, report
from bitsplit.report import comparison, folder, render, runs, sweeps, tables, titles
from bitsplit.report.accuracy import seeds_interval
from bitsplit.report.cells import COLUMNS

RECORDS = sorted((ROOT / "results").glob("*/runs/*.json"))
DATA = sorted({path.parts[-3] for path in RECORDS})


def made_run(
    model="resnet18", method="bitsplit", wbits=4, abits=4, top1=80.0, seed=0, variant="", data="glyphs", **metrics
):
    """A record like a committed one, of any cell; the batch-norm mode is that of `variant` or else the method's own.

    `metrics`: top-1 of the networks "fp32" (84.06) and "fp32_bn" (84.11).
    """
    run = json.loads((ROOT / "results/glyphs/runs/resnet18-bitsplit-w4a4-s0.json").read_text())
    own = "reestimate" if method.startswith("bitsplit") else "none"
    mode = re.search(r"batch_norm\.mode=(\w+)", variant)
    edges = 32 if method == "lapq" and "bits." not in variant else 8
    run |= {"model": model, "method": method, "wbits": wbits, "abits": abits, "seed": seed, "variant": variant}
    run["batch_norm"] = run["config"]["batch_norm"]["mode"] = mode.group(1) if mode else own
    run["config"]["bits"] |= {"wbits": wbits, "abits": abits} | dict.fromkeys(comparison._EDGES, edges)
    images = {"glyphs": 10_000, "imagenet": 50_000}.get(data, 500)
    run["data"] |= {"name": data, "title": f"{data} validation, {images:,} pictures"}
    for name, value in {"fp32": 84.06, "fp32_bn": 84.11, "quantized": top1}.items():
        value = metrics.get(name, value)
        run["metrics"][name] |= {"top1": value, "top5": min(value + 10, 100), "images": images}
    return run


def unlabelled(run: dict) -> dict:
    for metrics in run["metrics"].values():
        metrics |= {"top1": None, "top5": None}
    return run


def glyphs(*found: dict) -> folder.Folder:
    return folder.Folder("glyphs", list(found))


def imagenet(*found: dict) -> folder.Folder:
    return folder.Folder("imagenet", list(found), folder._imagenet_paper(ROOT / "results" / "paper"))


def reported(results: Path, *arguments: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "bitsplit.report", *arguments, "--results", str(results)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT)


def put(results: Path, *found: dict) -> None:
    for run in found:
        names = (run[key] for key in ("model", "method", "wbits", "abits", "seed", "variant"))
        record.write(record.run_path(results, run["data"]["name"], *names), run)


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


def files(path: Path) -> dict[str, bytes]:
    """The tables in a folder; a picture sheet may lie beside them."""
    return {file.name: file.read_bytes() for file in path.iterdir() if file.suffix in (".md", ".csv", ".tex")}


def test_tables_are_those_of_the_committed_records(tmp_path):
    """`make tables` changes nothing."""
    shutil.copytree(ROOT / "results" / "paper", tmp_path / "paper")
    for name in DATA:
        shutil.copytree(ROOT / "results" / name / "runs", tmp_path / name / "runs")
    assert reported(tmp_path).returncode == 0
    for name in DATA:
        assert files(tmp_path / name) == files(ROOT / "results" / name), name


def test_every_number_of_the_readmes_results_is_in_the_tables():
    section = (ROOT / "README.md").read_text().split("## Results")[1].split("\n## ")[0]
    texts = "".join(path.read_text() for path in (ROOT / "results").rglob("*.md") if path.parent.name != "paper")
    texts += (ROOT / "results" / "paper" / "imagenet_bitwidth_sweep.csv").read_text()
    shown = re.findall(r"\b\d{1,2}\.\d{1,2}\b", section)
    assert len(shown) > 20
    assert not [number for number in shown if not re.search(rf"\b{re.escape(number)}\b", texts)]


def test_paper_numbers_are_the_transcribed_ones():
    if not (SHARED / "paper").is_dir():
        pytest.skip("the transcription of the paper's tables is not beside the project")
    for path in (SHARED / "paper").glob("*.csv"):
        assert (ROOT / "results" / "paper" / path.name).read_text() == path.read_text()


def test_the_papers_networks_and_methods_are_those_of_its_table():
    published = pandas.read_csv(ROOT / "results" / "paper" / "imagenet_table4.csv")
    assert tuple(published["model"].unique()) == titles.PAPER_MODELS
    assert set(published["method"]) == {"fp32", *titles.PAPER_METHODS}
    # Floating point is the same in both files, so that one of them is enough.
    sweep = pandas.read_csv(ROOT / "results" / "paper" / "imagenet_bitwidth_sweep.csv")
    both = (frame[frame["method"] == "fp32"].set_index("model")["top1"] for frame in (published, sweep))
    pandas.testing.assert_series_equal(*both)


@pytest.mark.parametrize(("percent", "images"), [(85.6, 500), (50, 100), (0, 10), (99.9, 50_000)])
def test_interval_is_the_binomial_one(percent, images):
    share = percent / 100
    expected = 100 * norm.ppf(0.975) * (share * (1 - share) / images) ** 0.5
    assert report.interval(percent, images) == pytest.approx(expected)


def test_interval_over_seeds_is_students():
    values = [80.1, 80.9, 79.7, 80.2]
    low, high = t.interval(0.95, df=3, loc=np.mean(values), scale=sem(values))
    assert seeds_interval(values, 10_000) == pytest.approx((high - low) / 2)


@pytest.mark.parametrize("values", [[80.0], [80.0, 80.0, 80.0]])
def test_without_a_spread_of_seeds_the_interval_is_the_binomial_one(values):
    assert seeds_interval(values, 10_000) == report.interval(80.0, 10_000)


def test_only_the_folder_of_all_of_imagenet_reads_the_papers_numbers(tmp_path):
    shutil.copytree(ROOT / "results" / "paper", tmp_path / "paper")
    found = {name: folder.read(tmp_path, name).paper for name in ("imagenet", "imagenet_500", "glyphs")}
    assert found["imagenet"] is not None and found["imagenet_500"] is None and found["glyphs"] is None
    shutil.rmtree(tmp_path / "paper")
    assert folder.read(tmp_path, "imagenet").paper is None


def test_unlabelled_data_have_the_table_of_runs_alone(tmp_path):
    run = unlabelled(made_run(data="folder_mine"))
    written = tables.write_tables(folder.Folder("folder_mine", [run]), tmp_path)
    assert list(written) == ["runs"]
    shown = runs.runs_table(folder.Folder("folder_mine", [run])).shown.iloc[0]
    assert shown["top1"] == shown["interval95"] == shown["drop"] == "–" and float(shown["agreement"]) > 0
    assert pandas.read_csv(tmp_path / "runs.csv")[["top1", "drop"]].isna().all(axis=None)


def test_table_of_runs_has_every_record_with_its_drops():
    found = [made_run(top1=80.5), made_run(method="tflite", variant="batch_norm.mode=reestimate", seed=3)]
    table = runs.runs_table(glyphs(*found)).cells
    assert list(table["method"]) == ["bitsplit", "tflite (batch_norm.mode=reestimate)"]
    assert list(table["drop"]) == [3.56, 4.06] and list(table["drop_bn"]) == [3.61, 4.11]
    assert list(table["seed"]) == [0, 3]


def test_csv_is_one_line_a_cell_and_numbers_only(tmp_path):
    found = imagenet(made_run(top1=67.0, data="imagenet"))
    tables.write_tables(found, tmp_path)
    for name in ("table4", "table4_equal", "table_both"):
        text = (tmp_path / f"{name}.csv").read_text()
        table = pandas.read_csv(io.StringIO(text))
        assert list(table.columns) == COLUMNS and not table.duplicated(COLUMNS[:4]).any()
        assert all(pandas.api.types.is_numeric_dtype(table[column]) for column in COLUMNS[2:])
        absent = table[table["seeds"] == 0]
        assert len(absent) > 10 and absent[["top1", "top5", "drop", "images", "difference"]].isna().all(axis=None)
    assert not (tmp_path / "table_weights.csv").exists()  # no cell of it has a record


def test_latex_is_escaped_and_balanced():
    run = made_run("my_net#1", "50%_less&more")
    run["data"]["title"] = "a_b, 100% of {it}"
    text = render.latex(comparison.table4(glyphs(run)))
    assert r"my\_net\#1" in text and r"50\%\_less\&more" in text and r"a\_b, 100\% of \{it\}" in text
    assert r"80.00 $\pm$ 0.78 ($-$4.06)" in text
    bare = re.sub(r"\\[&%$#_{}]", "", text)
    assert bare.isascii() and not re.search(r"[%#_<>~^]", bare)
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    columns = len(re.search(r"\\begin{tabular}{(l+)}", text).group(1))
    rows = [line for line in bare.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 18 and {line.count("&") for line in rows} == {columns - 1}
    assert text.count(r"\midrule") == 3 and text.count(r"\toprule") == text.count(r"\bottomrule") == 1


def test_notes_are_part_of_markdown_and_latex():
    shown = pandas.DataFrame({"method": ["tflite"]})
    table = render.Table("Caption", shown, shown, notes=("first: a > b.", "second"))
    assert render.markdown(table).endswith("\n\n- first: a > b.\n- second\n")
    text = render.latex(table)
    assert text.index(r"\end{tabular}") < text.index(r"\par first: a $>$ b.") < text.index(r"\end{table}")


def test_a_table_longer_than_a_page_breaks_in_latex():
    text = render.latex(sweeps.table_weights(glyphs(made_run(abits=32))))
    assert text.startswith(r"\begin{longtable}") and text.rstrip().endswith(r"\end{longtable}")
    assert not re.search(r"\\midrule\s*\\end{longtable}", text) and r"\cline" not in text


def test_signs_of_a_change():
    texts = [report.texts.signed(value) for value in (0.125, -0.125, 0.004, -0.004, 0.0)]
    assert texts == ["+0.12", "−0.12", "0.00", "0.00", "0.00"]


def test_command_line_writes_all_tables_and_prints_the_one_asked_for(tmp_path):
    put(tmp_path, made_run(), made_run(data="imagenet_500", top1=75.0), made_run(data="imagenettes"))
    done = reported(tmp_path, "table4", "imagenet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (tmp_path / "imagenet_500" / "table4.md").read_text().strip()
    assert not (tmp_path / "glyphs" / "table4.md").exists() and not (tmp_path / "imagenettes" / "table4.md").exists()
    done = reported(tmp_path)
    assert done.returncode == 0 and done.stdout == ""
    before = files(tmp_path / "glyphs")
    assert reported(tmp_path).returncode == 0 and files(tmp_path / "glyphs") == before
    for name in ("glyphs", "imagenet_500"):
        names = ("runs", "table4", "table4_equal", "table_both")
        assert set(files(tmp_path / name)) == {f"{name}.{ending}" for name in names for ending in ("md", "csv", "tex")}


def test_no_records_is_one_line(tmp_path):
    put(tmp_path, made_run())
    for arguments, message in {
        ("table4", "imagenet"): "error: no records of imagenet",
        ("table_weights", "glyphs"): "error: no records for table_weights of glyphs",
    }.items():
        done = reported(tmp_path, *arguments)
        assert done.returncode == 2 and done.stderr.startswith(message) and done.stderr.count("\n") == 1


def test_a_broken_record_counts_as_absent(tmp_path):
    put(tmp_path, made_run())
    (tmp_path / "glyphs" / "runs" / "half.json").write_text('{"model": "resnet18"')
    assert len(folder.read(tmp_path, "glyphs").runs) == 1


def test_report_needs_neither_torch_nor_matplotlib():
    code = "import sys, bitsplit.report.__main__; print({'torch', 'matplotlib', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"


def test_records_are_in_one_order_whatever_their_files(tmp_path):
    found = [made_run(m, k, w, w) for m in ("resnet101", "resnet18") for k in ("bitsplit", "tflite") for w in (3, 8)]
    put(tmp_path, *found)
    order = [(run["model"], run["wbits"], run["method"]) for run in folder.read(tmp_path, "glyphs").runs]
    assert order == [(m, w, k) for m in ("resnet18", "resnet101") for w in (8, 3) for k in ("tflite", "bitsplit")]
