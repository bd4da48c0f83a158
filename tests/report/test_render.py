"""A table's files: numbers for programs, text for people."""

import io
import re

import pandas
from records import glyphs, imagenet, make_run

from bitsplit.report import render, sweeps, tables
from bitsplit.report.cells import COLUMNS
from bitsplit.report.table4 import table4


def test_csv_is_one_line_a_cell_and_numbers_only(tmp_path):
    tables.write_tables(imagenet(make_run(top1=67.0, data="imagenet")), tmp_path)
    for name in ("table4", "table4_equal", "table_both"):
        text = (tmp_path / f"{name}.csv").read_text()
        table = pandas.read_csv(io.StringIO(text))
        assert list(table.columns) == COLUMNS and not table.duplicated(COLUMNS[:4]).any()
        assert all(pandas.api.types.is_numeric_dtype(table[column]) for column in COLUMNS[2:])
        absent = table[table["seeds"] == 0]
        assert len(absent) > 10 and absent[["top1", "top5", "drop", "images", "difference"]].isna().all(axis=None)
    assert not (tmp_path / "table_weights.csv").exists()  # no cell of it has a record


def test_latex_is_escaped_and_balanced():
    run = make_run("my_net#1", "50%_less&more")
    run["data"]["title"] = "a_b, 100% of {it}"
    text = render.latex(table4(glyphs(run)))
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
    text = render.latex(sweeps.table_weights(glyphs(make_run(abits=32))))
    assert text.startswith(r"\begin{longtable}") and text.rstrip().endswith(r"\end{longtable}")
    assert not re.search(r"\\midrule\s*\\end{longtable}", text) and r"\cline" not in text
