"""The table of conventions: which records are in it, and where."""

from records import glyphs, make_run

from bitsplit.report.conventions import table_conventions
from bitsplit.report.table4 import table4, table4_equal


def test_each_convention_has_a_block_and_others_change_no_other_table():
    own = [make_run(top1=82.6), make_run(method="tflite", top1=79.0), make_run(abits=8, top1=84.0)]
    brecq = make_run(top1=82.0, variant="convention=brecq")
    table = table_conventions(glyphs(*own, brecq)).shown
    rows = {(row["convention"], row["setting"], row["method"]): row["ResNet-18"] for _, row in table.iterrows()}
    assert rows == {
        ("", "", "floating point"): "84.06 ± 0.72",
        ("bitsplit", "A8W4", "Bit-split"): "84.00 ± 0.72 (−0.06)",
        ("bitsplit", "A4W4", "Bit-split"): "82.60 ± 0.74 (−1.46)",
        ("brecq", "A8W4", "Bit-split"): "not run",
        ("brecq", "A4W4", "Bit-split"): "82.00 ± 0.75 (−2.06)",
    }
    assert table4(glyphs(*own, brecq)).shown.equals(table4(glyphs(*own)).shown)
    assert table4_equal(glyphs(brecq)) is None


def test_without_another_convention_there_is_no_table():
    variant = make_run(variant="convention=brecq-bits.first_wbits=4")
    assert table_conventions(glyphs(make_run(), variant)) is None
