"""Table 4, on each method's own terms and on equal ones: the records that it shows, and the words around them."""

import numpy as np
import pytest
from pandas import isna
from records import answered, cell, glyphs, imagenet, make_run, row
from scipy.stats import norm, sem

from bitsplit.report import interval, sweeps, titles
from bitsplit.report.records import Records
from bitsplit.report.table4 import equal_runs, table4, table4_equal

EIGHT = "bits.first_wbits=8-bits.last_wbits=8-bits.last_abits=8-"


def test_table4_shows_every_method_and_network_of_the_paper_and_says_what_has_not_run():
    runs = [make_run(top1=82.92), make_run(method="tflite", top1=78.54), make_run(abits=8, top1=84.0)]
    table = table4(glyphs(*runs))
    assert list(table.shown.columns) == [
        "setting",
        "method",
        *(titles.MODEL_TITLES[m] for m in titles.PAPER_CLASSIFIERS),
    ]
    labels = list(zip(table.shown["setting"], table.shown["method"], strict=True))
    methods = [titles.METHOD_TITLES[method] for method in titles.PAPER_METHODS]
    assert labels == [("", "floating point"), *((bits, m) for bits in ("A8W4", "A4W4") for m in methods)]
    assert row(table, "", "floating point")["ResNet-18"] == "84.06 ± 0.72"
    assert row(table, "A4W4", "Bit-split")["ResNet-18"] == "82.92 ± 0.74 (−1.14)"
    assert row(table, "A4W4", "TF-Lite")["ResNet-18"] == "78.54 ± 0.80 (−5.52)"
    assert row(table, "A8W4", "Bit-split")["ResNet-18"] == "84.00 ± 0.72 (−0.06)"
    shown = table.shown.drop(columns=["setting", "method"]).to_numpy().ravel()
    assert (shown == "not run").sum() == shown.size - 4
    assert "glyphs validation, 10,000 images" in table.caption and "paper" not in table.caption


def test_unknown_methods_and_networks_follow_the_known_under_their_own_names():
    table = table4(glyphs(make_run("zz_net", "brecq"), make_run("efficientnet_lite0", "aaa")))
    assert list(table.shown.columns[-2:]) == ["EfficientNet-Lite0", "zz_net"]
    assert list(table.shown["method"][-3:]) == ["Bit-split-per-channel", "aaa", "brecq"]


def test_elsewhere_only_networks_with_a_record_are_shown():
    table = table4(Records("imagenet_500", [make_run("resnet50", data="imagenet_500")]))
    assert list(table.shown.columns) == ["setting", "method", "ResNet-50"]


def test_variants_are_in_no_table_of_the_methods_own_settings():
    variant = glyphs(make_run(method="tflite", variant="batch_norm.mode=reestimate"))
    assert table4(variant) is None
    assert sweeps.table_both(variant) is None and sweeps.table_weights(variant) is None


def test_the_papers_numbers_stand_beside_ours_only_on_all_of_imagenet():
    runs = [make_run(top1=73.5, fp32=76.13, model="resnet50", data="imagenet"), make_run("mine", data="imagenet")]
    table = table4(imagenet(*runs))
    assert row(table, "A4W4", "Bit-split")["ResNet-50"] == "73.50 ± 0.39 (−2.63; paper 73.7, −0.20)"
    assert row(table, "A8W4", "Bit-split")["VGG-16-BN"] == "not run (paper 73.0)"
    assert row(table, "A4W4", "LAPQ")["VGG-16-BN"] == "not run"
    assert row(table, "", "floating point")["ResNet-50"] == "76.13 ± 0.37 (paper 76.15, −0.02)"
    assert "paper" not in row(table, "A4W4", "Bit-split")["mine"] and "paper" in table.caption
    bitsplit = cell(table, "resnet50", "bitsplit")
    assert (bitsplit["paper_top1"], bitsplit["difference"], bitsplit["drop"]) == ("73.7", -0.2, 2.63)


def test_several_seeds_give_their_mean_and_spread_beside_the_interval_over_images():
    values = [80.0, 81.0, 82.5]
    runs = [make_run(top1=value, seed=seed) for seed, value in enumerate(values)]
    table = table4(glyphs(*runs, make_run(method="tflite", top1=79.0)))
    shown = cell(table, "resnet18", "bitsplit")
    assert shown["seeds"] == 3 and shown["top1"] == pytest.approx(np.mean(values), abs=1e-4)
    assert shown["top1_interval"] == pytest.approx(interval(np.mean(values), 10_000), abs=1e-4)
    assert shown["top1_spread"] == pytest.approx(np.std(values, ddof=1), abs=1e-4)
    assert shown["drop"] == pytest.approx(84.06 - np.mean(values), abs=1e-4)
    assert row(table, "A4W4", "Bit-split")["ResNet-18"] == "81.17 ± 0.77 (−2.89; 3 seeds, spread 1.26)"
    assert row(table, "A4W4", "TF-Lite")["ResNet-18"] == "79.00 ± 0.80 (−5.06)"
    assert row(table, "", "floating point")["ResNet-18"] == "84.06 ± 0.72"  # has no seed
    assert "seeds" in table.caption


@pytest.mark.parametrize("seeds", [1, 3])
def test_drops_have_paired_intervals_where_all_records_say_which_images_were_right(seeds):
    draw = np.random.default_rng(0)
    reference = draw.random(400) < 0.8
    rights = [np.where(draw.random(400) < 0.1, ~reference, reference) for _ in range(seeds)]
    runs = [answered(right, reference, seed=seed) for seed, right in enumerate(rights)]
    shown = cell(table4(glyphs(*runs)), "resnet18", "bitsplit")
    differences = 100 * (reference - np.mean(rights, axis=0))
    low, high = norm.interval(0.95, differences.mean(), sem(differences, ddof=0))
    assert shown["drop"] == pytest.approx(differences.mean(), abs=1e-4)
    assert shown["drop_interval"] == pytest.approx((high - low) / 2, abs=1e-4)
    table = table4(glyphs(*runs))
    assert f"(−{shown['drop']:.2f} ± {shown['drop_interval']:.2f}" in row(table, "A4W4", "Bit-split")["ResNet-18"]
    assert "paired" in table.caption
    mixed = table4(glyphs(*runs, make_run(seed=9)))
    assert isna(cell(mixed, "resnet18", "bitsplit")["drop_interval"]) and "paired" not in mixed.caption


def equal_variants() -> list[dict]:
    """What table4_equal takes, and around it what it must leave."""
    reestimated = "batch_norm.mode=reestimate"
    return [
        make_run(top1=82.0),
        make_run(method="tflite", top1=78.0),
        make_run(method="tflite", top1=79.5, variant=reestimated),
        make_run(method="tflite", top1=1.0, variant="batch_norm.mode=shift"),
        make_run(method="tflite", top1=2.0, wbits=3, abits=3, variant=reestimated),
        make_run(method="lapq", top1=79.0),
        make_run(method="lapq", top1=3.0, variant=reestimated),  # first and last layer in floating point
        make_run(method="lapq", top1=79.2, variant=EIGHT + reestimated),
        make_run(method="aciq", top1=4.0, variant=f"{reestimated}-method.prior=gauss"),
        make_run(method="aciq", top1=5.0, variant=f"calibration.patches=100-{reestimated}"),
        make_run(method="aciq", top1=6.0, variant=f"data.validation_images=200-{reestimated}"),
        with_bits_for_layers(make_run(method="aciq", top1=8.0, variant=f"{reestimated}-layer4.*=w8a8")),
    ]


def with_bits_for_layers(run: dict) -> dict:
    run["config"]["layers"] = run["config"]["layers"] | {"bits": [["layer4.*", [8, 8]]]}
    return run


def test_equal_terms_are_one_re_estimation_and_8_bits_in_first_and_last_layer():
    chosen = equal_runs(equal_variants())
    assert {(run["method"], run["metrics"]["quantized"]["top1"]) for run in chosen} == {
        ("bitsplit", 82.0),
        ("tflite", 79.5),
        ("lapq", 79.2),
    }


def test_the_re_estimation_of_equal_terms_is_bit_splits_own():
    shifted = make_run(variant="batch_norm.mode=shift", top1=82.0) | {"variant": ""}  # too few images to re-estimate
    chosen = equal_runs([shifted, *equal_variants()[1:]])
    assert {run["batch_norm"] for run in chosen} == {"shift"} and len(chosen) == 2
    assert {run["batch_norm"] for run in equal_runs(equal_variants()[1:])} == {"reestimate"}
    fewer = make_run(method="tflite", variant="batch_norm.mode=reestimate-batch_norm.batches=20")
    fewer["config"]["batch_norm"]["batches"] = 20
    assert equal_runs([make_run(), fewer]) == [make_run()]


def test_table4_on_equal_terms_is_against_floating_point_with_the_same_batch_norm():
    table = table4_equal(imagenet(*equal_variants()))
    assert row(table, "", "floating point, same batch-norm")["ResNet-18"].startswith("84.11")
    assert row(table, "A4W4", "TF-Lite")["ResNet-18"] == "79.50 ± 0.79 (−4.61)"
    assert cell(table, "resnet18", "tflite")["drop"] == pytest.approx(4.61)
    assert row(table, "A4W4", "ACIQ")["ResNet-18"] == "not run"
    assert "fp32_bn" in set(table.cells["method"]) and "fp32" not in set(table.cells["method"])
    assert table.cells["paper_top1"].isna().all()  # the paper has no such table
    assert "mode=reestimate" in table.caption


def test_notes_on_equal_terms_are_computed_from_the_two_tables():
    runs = equal_variants()
    notes = table4_equal(glyphs(*runs)).notes
    assert notes == (
        "A4W4, gain in top-1 over table4 in points (1 network): TF-Lite +1.50, LAPQ +0.20.",
        "A4W4, methods ranked by top-1 (1 network), whatever the intervals: "
        "Bit-split > LAPQ > TF-Lite becomes Bit-split > TF-Lite > LAPQ.",
        "Unchanged, being the same records as in table4: Bit-split.",
    )
    more = [make_run("resnet50", "tflite", top1=70.0)]
    more += [make_run("resnet50", "tflite", top1=70.5, variant="batch_norm.mode=reestimate")]
    notes = table4_equal(glyphs(*runs, *more, make_run("resnet50", top1=81.0))).notes
    assert "A4W4, gain in top-1 over table4 in points (mean over 2 networks): TF-Lite +1.00." in notes
    assert "A4W4, gain in top-1 over table4 in points (1 network): LAPQ +0.20." in notes
    assert table4_equal(glyphs(make_run(), *more)).notes[1:] == (
        "Unchanged, being the same records as in table4: Bit-split.",
    )


def test_floating_point_with_re_estimation_has_seeds():
    runs = [make_run(seed=seed, fp32_bn=84 + seed / 10, top1=80 + seed) for seed in range(3)]
    shown = cell(table4_equal(glyphs(*runs)), "resnet18", "fp32_bn", 32, 32)
    assert shown["seeds"] == 3 and shown["top1"] == 84.1
    assert shown["top1_spread"] == pytest.approx(0.1)


def test_gains_on_equal_terms_are_over_the_seeds_of_both_tables():
    seeds = [make_run(method="tflite", top1=70 + seed, seed=seed) for seed in range(3)]
    equal = make_run(method="tflite", top1=71.5, variant="batch_norm.mode=reestimate")
    notes = table4_equal(glyphs(make_run(), *seeds, equal)).notes
    assert "A4W4, gain in top-1 over table4 in points (1 network): TF-Lite +1.50." in notes


def test_the_ranks_on_equal_terms_are_over_the_networks_of_most_methods():
    """A method that lacks some of them takes no network away from the others."""
    runs = []
    for model, gain in (("resnet18", 0.0), ("resnet50", 3.0)):
        runs += [make_run(model, top1=80.0), make_run(model, "tflite", top1=78.0), make_run(model, "aciq", top1=77.0)]
        for method, top1 in (("tflite", 78.5), ("aciq", 78.0 + gain)):
            runs.append(make_run(model, method, top1=top1, variant="batch_norm.mode=reestimate"))
    runs += [
        make_run(method="lapq", top1=90.0),
        make_run(method="lapq", top1=90.5, variant=EIGHT + "batch_norm.mode=reestimate"),
    ]
    ranks = [note for note in table4_equal(glyphs(*runs)).notes if "ranked" in note]
    assert ranks == [
        "A4W4, methods ranked by top-1 (mean of 2 networks), whatever the intervals: "
        "Bit-split > TF-Lite > ACIQ becomes Bit-split > ACIQ > TF-Lite."
    ]
