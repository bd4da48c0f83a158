"""The sweeps over bit-widths: which records make one, and the paper's numbers beside them."""

from records import glyphs, imagenet, make_run, row

from bitsplit.report import sweeps, titles


def sweep_runs(wbits_abits, **arguments) -> list[dict]:
    return [make_run(wbits=w, abits=a, top1=70 + w, **arguments) for w, a in wbits_abits]


def test_sweep_of_weights_has_a_block_a_network_headed_by_floating_point():
    runs = sweep_runs([(8, 32), (3, 32), (3, 8)]) + sweep_runs([(4, 32)], model="resnet50", method="tflite")
    table = sweeps.table_weights(glyphs(*runs))
    blocks = table.shown.groupby("network", sort=False)
    assert list(blocks.groups) == [titles.MODEL_TITLES[model] for model in titles.PAPER_CLASSIFIERS]
    bits = [f"W{w}A{a}" for a in (32, 8) for w in (8, 7, 6, 5, 4, 3)]
    for _, block in blocks:
        assert list(block["bits"]) == ["", *(b for b in bits for _ in range(2))]
        assert list(block["method"]) == ["floating point", *["TF-Lite", "Bit-split"] * 12]
    assert list(row(table, "ResNet-18", "W3A32", "Bit-split")) == ["73.00 ± 0.87 (−11.06)", "83.00 ± 0.74"]
    assert list(row(table, "ResNet-18", "", "floating point")) == ["84.06 ± 0.72", "94.06 ± 0.46"]
    assert list(row(table, "ResNet-18", "W4A32", "TF-Lite")) == ["not run", "not run"]
    assert list(row(table, "VGG-16-BN", "", "floating point")) == ["not run", "not run"]


def test_sweep_of_both_has_the_papers_numbers_for_top1_and_top5():
    table = sweeps.table_both(imagenet(make_run(wbits=3, abits=3, top1=61.0, fp32=69.76, data="imagenet")))
    shown = row(table, "ResNet-18", "W3A3", "Bit-split")
    assert list(shown) == ["61.00 ± 0.43 (−8.76; paper 61.3, −0.30)", "71.00 ± 0.40 (paper 83.47, −12.47)"]
    assert list(row(table, "ResNet-18", "W5A5", "TF-Lite")) == ["not run (paper 61.47)", "not run (paper 83.43)"]


def test_methods_join_a_sweep_by_a_record_outside_table4():
    alone = glyphs(make_run(), make_run(method="lapq"), make_run(method="lapq", abits=8))
    assert set(sweeps.table_both(alone).cells["method"]) == {"fp32", "tflite", "bitsplit"}
    assert sweeps.table_weights(glyphs(make_run(method="lapq", abits=8))) is None
    swept = glyphs(*alone.runs, make_run(method="lapq", wbits=5, abits=5))
    assert list(sweeps.table_both(swept).cells["method"].unique()) == ["fp32", "tflite", "lapq", "bitsplit"]


def test_two_bits_are_a_table_of_their_own():
    runs = sweep_runs([(2, 32), (2, 4)], method="bitsplit_plus") + sweep_runs([(2, 4)]) + [make_run()]
    table = sweeps.table_two_bits(glyphs(*runs))
    assert list(row(table, "ResNet-18", "W2A4", "Bit-split-plus"))[0].startswith("72.00")
    assert list(row(table, "ResNet-18", "W2A8", "Bit-split"))[0] == "not run"
    assert set(table.cells["wbits"]) == {2, 32} and "three values" in table.caption
    assert sweeps.table_two_bits(glyphs(make_run())) is None
    assert sweeps.table_weights(glyphs(*runs[:2])) is None
