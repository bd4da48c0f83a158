"""The table of depthwise networks, which no table of the paper's shows."""

from records import cell, glyphs, make_run, row

from bitsplit.report import sweeps, table4, titles
from bitsplit.report.bit_width_figure import curves
from bitsplit.report.depthwise import depthwise

MODEL = titles.DEPTHWISE_CLASSIFIERS[0]


def test_depthwise_networks_have_a_table_with_a_column_each():
    runs = [make_run(MODEL, "bitsplit_plus", w, a, top1=70 + w, fp32=79.0) for w, a in ((8, 8), (4, 8), (4, 4))]
    runs += [make_run(MODEL, "tflite", 8, 8, top1=50.0, fp32=79.0), make_run("resnet18", "lapq", 8, 8)]
    table = depthwise(glyphs(*runs))
    assert list(table.shown.columns) == ["setting", "method", titles.MODEL_TITLES[MODEL]]
    assert list(table.shown["setting"]) == ["", *["A8W8"] * 2, *["A8W4"] * 2, *["A4W4"] * 2]
    assert list(row(table, "A8W8", "Bit-split-plus")) == ["78.00 ± 0.81 (−1.00)"]
    assert list(row(table, "A4W4", "TF-Lite")) == ["not run"]
    assert cell(table, MODEL, "bitsplit_plus", 4, 8)["drop"] == 5
    assert depthwise(glyphs(make_run(), make_run(MODEL, variant="method.damping=0"))) is None


def test_depthwise_networks_change_no_table_of_the_papers():
    runs = [make_run(w, m, b, b) for w in ("resnet18", "vgg16_bn") for m in ("tflite", "bitsplit") for b in (4, 3)]
    more = [make_run(MODEL, method, b, b) for method in ("bitsplit", "lapq") for b in (8, 4)]
    for table_of in (table4.table4, table4.table4_equal, sweeps.table_weights, sweeps.table_both):
        before, after = (table_of(glyphs(*some)) for some in (runs, runs + more))
        assert (before is None) == (after is None)
        assert before is None or before.cells.equals(after.cells)
    assert curves(runs, "both").equals(curves(runs + more, "both"))
