"""Figures: the drawn data beside them, drawn once, and what the eye should find in them."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas
import pytest
from conftest import ROOT
from matplotlib.figure import Figure
from records import DATA_SETS, answered, make_run, report, unlabelled, write_runs

from bitsplit import methods
from bitsplit.report import figures, interval, styles
from bitsplit.report.bit_width_figure import CURVE_COLUMNS, HEADINGS, bit_width_figure, curves
from bitsplit.report.records import Records, read_records
from bitsplit.report.sweeps import WIDTHS

BITS = {"weights": [(bits, 32) for bits in WIDTHS], "both": [(bits, bits) for bits in WIDTHS]}


def swept(sweep: str, model="resnet18", methods=("tflite", "bitsplit")) -> list[dict]:
    return [make_run(model, method, w, a, top1=70 + w) for method in methods for w, a in BITS[sweep]]


@pytest.mark.parametrize("name", DATA_SETS)
def test_committed_figures_are_those_of_the_committed_records(name):
    path = ROOT / "results" / name / "figures"
    runs = read_records(ROOT / "results", name).runs
    for sweep in HEADINGS:
        if not (table := curves(runs, sweep)).empty:
            assert (path / f"{sweep}.csv").read_text() == table.to_csv(index=False)
            assert (path / f"{sweep}.png").is_file() and (path / f"{sweep}.svg").is_file()


@pytest.mark.parametrize("sweep", HEADINGS)
def test_data_are_the_records_of_the_sweep_with_the_methods_own_settings(sweep):
    others = [make_run(variant="batch_norm.mode=reestimate", method="tflite"), make_run(wbits=5, abits=8)]
    others += [make_run(method="lapq"), unlabelled(make_run("resnet50", data="folder_mine"))]
    table = curves([*swept(sweep), *others], sweep)
    assert list(table.columns) == CURVE_COLUMNS
    assert list(table["model"].unique()) == ["resnet18"]
    quantized = table[table["method"] != "fp32"]
    assert set(zip(quantized["method"], quantized["wbits"], quantized["abits"], strict=True)) == {
        (method, *bits) for method in ("tflite", "bitsplit") for bits in BITS[sweep]
    }
    assert (quantized["top1"] == 70 + quantized["wbits"]).all()
    expected = [round(interval(top1, 10_000), 4) for top1 in table["top1"]]
    assert list(table["top1_interval"]) == expected
    assert list(quantized["change"]) == pytest.approx(list(quantized["top1"] - 84.06))


@pytest.mark.parametrize("sweep", HEADINGS)
def test_the_papers_curves_stand_beside_ours_with_the_papers_own_numbers(sweep):
    paper = read_records(ROOT / "results", "imagenet").paper
    figure = bit_width_figure([*swept(sweep), *swept(sweep, "resnet50")], sweep, paper)
    titles = [panel.get_title() for panel in figure.axes]
    floating = {18: "69.76", 50: "76.15"}
    assert titles == [
        title
        for depth in (18, 50)
        for title in (
            f"ResNet-{depth}, ours: floating point 84.06%",
            f"ResNet-{depth}, the paper on ImageNet: floating point {floating[depth]}%",
        )
    ]
    assert "the paper's numbers on ImageNet" in figure.get_suptitle()
    numbers = pandas.read_csv(ROOT / "results/paper/imagenet_bitwidth_sweep.csv")
    numbers = numbers[(numbers["table"] == sweep) & ((numbers["abits"] == 32) | (sweep == "both"))]
    for panel, model, depth in zip(figure.axes[1::2], ("resnet18", "resnet50"), (18, 50), strict=True):
        lines = {line.get_gid(): line for line in panel.get_lines()}
        for method in ("tflite", "bitsplit"):
            published = numbers[(numbers["model"] == model) & (numbers["method"] == method)].set_index("wbits")["top1"]
            changes = published.sort_index() - float(floating[depth])
            assert list(lines[f"{model}-{method}"].get_ydata()) == pytest.approx(list(changes))


def test_without_records_there_is_nothing_to_draw():
    assert curves([make_run(abits=8)], "weights").empty and curves([], "both").empty
    assert figures.bit_width_figures([make_run(abits=8), unlabelled(make_run())]) == {}
    assert list(figures.bit_width_figures([make_run()])) == ["both"]


def test_figure_has_a_panel_a_network_and_a_line_a_method():
    runs = [*swept("both", "resnet50"), *swept("both"), *swept("both", "my_net", ("my_method", "bitsplit"))]
    figure = bit_width_figure(runs, "both")
    assert isinstance(figure, Figure)
    panels = [panel for panel in figure.axes if panel.get_visible()]
    titles = [f"{name}: floating point 84.06%" for name in ("ResNet-18", "ResNet-50", "my_net")]
    assert [panel.get_title() for panel in panels] == titles
    assert "glyphs validation, 10,000 images" in figure.get_suptitle()
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert entries == ["floating point", "TF-Lite", "Bit-split", "my_method"]
    for panel in panels:
        assert panel.get_ylabel() == "change of top-1 (points)" and panel.get_xlabel().endswith("(bits)")
        lines = {line.get_gid(): line for line in panel.get_lines() if line.get_gid()}
        assert len(lines) == 3
        for name, line in lines.items():
            if name.endswith("fp32"):
                assert set(line.get_ydata()) == {0} and line.get_linestyle() == "--"
            else:
                assert list(line.get_ydata()) == pytest.approx([70 + width - 84.06 for width in sorted(WIDTHS)])


def test_bars_are_paired_intervals_where_the_records_say_which_images_were_right():
    draw = np.random.default_rng(0)
    reference = draw.random(1000) < 0.8
    runs = [
        answered(np.where(draw.random(1000) < 0.1, ~reference, reference), reference, wbits=bits, abits=bits)
        for bits in WIDTHS
    ]
    table, figure = curves(runs, "both"), bit_width_figure(runs, "both")
    assert "paired" in figure.get_suptitle()
    bars = [bar for container in figure.axes[0].containers for bar in container.lines[2][0].get_segments()]
    drawn = sorted((high + low, high - low) for (_, low), (_, high) in bars)
    quantized = table[table["method"] == "bitsplit"]
    expected = sorted(zip(2 * quantized["change"], 2 * quantized["change_interval"], strict=True))
    assert np.array(drawn) == pytest.approx(np.array(expected), abs=1e-6)


def test_the_axis_ends_below_the_methods_that_hold_and_says_how_far_the_others_fall():
    losses = {"bitsplit_plus": 3, "bitsplit": 6, "tflite": 40}
    runs = [
        make_run(method=m, wbits=b, abits=b, top1=84.06 - loss * (b == 3)) for m, loss in losses.items() for b in (3, 4)
    ]
    (panel,) = bit_width_figure(runs, "both").axes
    low, high = panel.get_ylim()
    assert -8 < low < -6 and 0 < high < 1 and panel.get_xlim() == (2.5, 4.5)
    assert [text.get_text() for text in panel.texts] == ["▼ −40"]


def test_methods_differ_in_colour_and_marker_and_keep_theirs():
    known = styles.styles(["fp32", *methods.names(), "mine"])
    looks = [(style["color"], style["marker"]) for method, style in known.items() if method != "fp32"]
    assert len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == len(looks)
    assert styles.styles(["fp32", "lapq"])["lapq"] == known["lapq"]


def test_a_network_with_one_bit_width_has_no_panel_beside_those_with_curves():
    single = [make_run("resnet50", "tflite", 4, 4), make_run("resnet50", "bitsplit", 4, 4)]
    assert set(curves([*swept("both"), *single], "both")["model"]) == {"resnet18"}
    assert set(curves(single, "both")["model"]) == {"resnet50"}


def test_a_line_breaks_where_a_bit_width_has_not_run():
    figure = bit_width_figure([make_run(wbits=bits, abits=bits) for bits in (8, 4)], "both")
    line = next(line for line in figure.axes[0].get_lines() if line.get_gid() == "resnet18-bitsplit")
    assert list(pandas.isna(line.get_ydata())) == [True, False, True, True, True, False]


def test_files_are_written_once_and_again_only_for_other_data(tmp_path):
    first = Records("glyphs", swept("both"))
    images = figures.write_figures(first, tmp_path)
    assert [path.name for path in images] == ["both.png", "both.svg"]
    table = pandas.read_csv(tmp_path / "both.csv")
    pandas.testing.assert_frame_equal(table, curves(first.runs, "both").reset_index(drop=True), check_dtype=False)
    drawn = {path: path.read_bytes() for path in images}

    for path in images:
        path.write_bytes(b"old")
    assert figures.write_figures(first, tmp_path) == images
    assert all(path.read_bytes() == b"old" for path in images)

    (tmp_path / "both.png").unlink()
    figures.write_figures(first, tmp_path)
    assert {path: path.read_bytes() for path in images} == drawn  # the same bytes every time

    figures.write_figures(Records("glyphs", first.runs[1:]), tmp_path)
    assert all(path.read_bytes() != drawn[path] for path in images)
    assert len(pandas.read_csv(tmp_path / "both.csv")) == len(table) - 1


def test_an_interrupted_drawing_is_done_again(tmp_path, monkeypatch):
    first = Records("glyphs", swept("both"))
    figures.write_figures(first, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(figures, "_svg", lambda figure: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            figures.write_figures(Records("glyphs", first.runs[1:]), tmp_path)
    before = (tmp_path / "both.svg").read_bytes()
    figures.write_figures(Records("glyphs", first.runs[1:]), tmp_path)
    assert (tmp_path / "both.svg").read_bytes() != before


def test_svg_has_a_line_a_method(tmp_path):
    figures.write_figures(Records("glyphs", [*swept("weights"), *swept("weights", "vgg16_bn")]), tmp_path)
    tree = ElementTree.parse(tmp_path / "weights.svg")
    names = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(names) == len(set(names))
    for model in ("resnet18", "vgg16_bn"):
        assert {f"{model}-{method}" for method in ("fp32", "tflite", "bitsplit")} <= set(names)
    assert "date>" not in (tmp_path / "weights.svg").read_text()


def test_command_line_draws_figures(tmp_path):
    write_runs(tmp_path, *swept("both"), make_run(data="imagenet_500"))
    done = report(tmp_path, "figures", "glyphs")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "glyphs" / "figures"
    assert done.stdout.splitlines() == [str(path / "both.png"), str(path / "both.svg")]
    assert {file.name for file in path.iterdir()} == {"both.png", "both.svg", "both.csv"}
    assert not (tmp_path / "imagenet_500" / "figures").exists()
    write_runs(tmp_path, make_run(abits=8, data="imagenette"))
    done = report(tmp_path, "figures", "imagenette")
    assert (
        done.returncode == 2
        and done.stderr.startswith("error: no records for figures")
        and done.stderr.count("\n") == 1
    )


def test_drawing_leaves_pyplot_alone():
    code = "import sys, bitsplit.report.figures; print({'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"
