"""Ours minus the paper's numbers, over all tables on ImageNet."""

import pytest
from records import glyphs, imagenet, make_run

from bitsplit.report import tables
from bitsplit.report.against_paper import against_paper


def test_comparison_with_the_paper_is_ours_minus_theirs():
    """The paper's W4A4: ResNet-18 67.56, ResNet-50 73.71 with bit-split, 18.84 for ResNet-18 with TF-Lite."""
    runs = [make_run(top1=67.26, data="imagenet"), make_run("resnet50", top1=74.71, data="imagenet")]
    table = against_paper(imagenet(*runs, make_run(method="tflite", top1=18.84, data="imagenet")))
    cells = table.cells.set_index(["table", "wbits", "abits", "method"])
    ours = cells.loc[("table_both", 4, 4, "bitsplit")]
    assert (ours["paper"], ours["run"], ours["inside"]) == (4, 2, 1)
    assert (ours["least"], ours["greatest"]) == (pytest.approx(-0.30), pytest.approx(1.0))
    assert ours["mean"] == pytest.approx(0.35)
    assert cells.loc[("table_both", 4, 4, "tflite")]["mean"] == 0
    assert cells.loc[("table_both", 3, 3, "bitsplit")]["run"] == 0
    shown = table.shown.set_index(["table", "bits", "method"])
    assert shown.loc[("table_both", "W4A4", "Bit-split")].tolist() == ["2 of 4", "+0.35", "−0.30", "+1.00", "1"]
    assert shown.loc[("table_both", "W3A3", "Bit-split")].tolist() == ["0 of 4", "–", "–", "–", "–"]


def test_other_data_than_the_papers_are_not_compared():
    assert against_paper(glyphs(make_run())) is None and against_paper(imagenet()) is None
    assert "against_paper" in tables.TABLES
