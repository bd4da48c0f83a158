"""The page about a quantized network: its numbers against the report and the network, its markup, its bytes."""

import ast
import copy
import html.parser
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from small_networks import (
    BATCHES,
    NO_NORM,
    SMALL,
    Levels,
    Odd,
    Signed,
    every_method,
    lively,
    outputs,
    quantized_layers,
)
from torch import nn

import bitsplit
from bitsplit.export.page.charts import ErrorAxis, histogram_outline
from bitsplit.export.page.facts import Size, facts_of_layers
from bitsplit.export.page.file import write_page
from bitsplit.layers.inputs import CallQuantizers
from bitsplit.settings import Settings

METRICS = {
    "fp32": {"top1": 84.0625, "top5": 96.01, "agreement": 100.0, "logits_snr_db": None, "images": 10000, "skipped": 0},
    "fp32_bn": {"top1": 84.0, "top5": 96.07, "agreement": 98.5, "logits_snr_db": 31.3, "images": 10000, "skipped": 0},
    "quantized": {"top1": 82.5, "top5": 95.5, "agreement": 92.5, "logits_snr_db": 19.5, "images": 10000, "skipped": 0},
}
VOID = {"meta", "col", "br", "wbr"}


class Page(html.parser.HTMLParser):
    """Tables by their section's heading, each a list of rows of cells; all text, and what elements are open."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.text, self.open, self.heading = {}, "", [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        if tag == "h2":
            self.heading = ""
        if tag == "tr":
            self.tables.setdefault(self.heading, []).append([])
        if tag in ("td", "th"):
            self.tables[self.heading][-1].append("")
        if tag == "br":
            self.tables[self.heading][-1][-1] += "\n"

    def handle_startendtag(self, tag, attributes):
        assert "svg" in self.open, tag  # HTML's own elements do not close themselves

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if "h2" in self.open:
            self.heading += data
        if ("td" in self.open or "th" in self.open) and "svg" not in self.open:
            self.tables[self.heading][-1][-1] += data


def page_of(qmodel, tmp_path, metrics=None):
    """(the parsed page, its text), whose markup is sound and which loads nothing."""
    qmodel.to_html(tmp_path / "page.html", metrics)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert text.count("<svg") == len(drawings) > 0
    for drawing in map(ElementTree.fromstring, drawings):
        assert drawing.find("title").text and drawing.get("role") == "img"
        for rect in drawing.iter("rect"):
            left, width = (float(rect.get(key, "0").removesuffix("%")) for key in ("x", "width"))
            assert 0 <= left <= left + width <= 101
    assert not re.search(r"http|<script|<link|<img|<iframe|\b(src|href)=|url\(|@import", text)
    return page, text


def quantized(network, wbits=4, abits=4, method="bitsplit", settings=SMALL, batches=BATCHES, **options):
    return bitsplit.quantize(network, batches, wbits, abits, method, settings=settings, **options)


def number(text):
    return float(text.replace("−", "-").replace(",", ""))


@every_method
def test_every_methods_page_has_its_errors(method, tmp_path):
    qmodel = quantized(lively(Signed()), method=method)
    page, _ = page_of(qmodel, tmp_path)
    shown = {row[0]: row[-1].split("\n") for row in page.tables["Error by layer"][1:]}
    assert list(shown) == list(qmodel.report.query("relative_error + input_error > 0")["name"])
    columns = (("relative_error", "wbits"), ("input_error", "abits"))
    for _, row in qmodel.report[qmodel.report["name"].isin(shown)].iterrows():
        for text, (error, bits) in zip(shown[row["name"]], columns, strict=True):
            expected = "–" if row[bits] == 32 else f"{100 * row[error]:.4f}"
            assert text == expected or (text == "< 0.0001" and row[error] < 5e-7)


def test_ranges_are_the_quantizers(network, tmp_path):
    qmodel = quantized(network)
    rows = page_of(qmodel, tmp_path)[0].tables["Activation ranges and where they are clipped"][1:]
    layers = {name: layer for name, layer in quantized_layers(qmodel).items() if layer.input_quantizer}
    assert {row[0] for row in rows} == layers.keys() == quantized_layers(qmodel).keys() - {"stem"}
    for name, _, _, text in rows:
        clip, observed = text.split("\n")
        quantizer = layers[name].input_quantizer
        assert number(clip.split(" to ")[1]) == pytest.approx(quantizer.scale.item() * quantizer.grid.high, rel=6e-3)
        assert [number(end) for end in observed.split(" to ")] == pytest.approx(quantizer.observed, rel=6e-3)


@pytest.mark.parametrize("method", ["bitsplit", "bitsplit_ecaq"])
def test_observed_is_what_the_layers_read(network, method):
    """With weights in integers and inputs as they are, as when they were sampled; in sequence the first layer alone."""
    settings = Settings(calibration=SMALL.calibration, batch_norm=NO_NORM.batch_norm)
    qmodel = quantized(network, method=method, settings=settings)
    observed, seen = {}, {}
    for name, layer in quantized_layers(qmodel).items():
        if name != "stem":
            observed[name] = layer.input_quantizer.observed
        layer.input_quantizer = nn.Identity()
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.setdefault(name, []).append(args[0]))
    for batch in BATCHES:
        outputs(qmodel, batch)
    names = observed if method == "bitsplit" else ["main.0"]
    for name in names:
        values = torch.cat([x.flatten() for x in seen[name]])
        assert observed[name] == pytest.approx((values.min().item(), values.max().item()), rel=1e-5, abs=1e-6)


def test_size_by_hand(network):
    """Against the floating-point network's own state, and integers counted by hand."""
    qmodel = quantized(network, 3, 4)
    size, state = Size.of(qmodel), network.state_dict().values()
    floats = sum(value.numel() for value in state if value.is_floating_point())
    assert size.float_bytes == 4 * floats
    layers = quantized_layers(qmodel)
    first, last = (layers[name].codes.numel() for name in ("stem", "head"))
    others = sum(layer.codes.numel() for layer in layers.values()) - first - last
    assert size.codes == {3: others, 8: first + last}
    rows = sum(len(layer.scale) for layer in layers.values())
    assert size.scales == rows + len({id(layer.input_quantizer) for layer in layers.values()} - {id(None)})
    assert size.bytes == (3 * others + 8 * (first + last)) / 8 + 4 * (size.scales + floats - others - first - last)


def test_shared_weights_count_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.one, self.two, self.head = (nn.Conv2d(3, 3, 1) for _ in range(3))
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.head(self.two(self.one(x).relu()).relu())

    size = Size.of(quantized(Twice()))
    assert size.codes == {8: 18} and size.rest == 9


def test_accuracy_table(network, tmp_path):
    qmodel = quantized(network)
    page, _ = page_of(qmodel, tmp_path, METRICS)
    head, *rows = page.tables["Accuracy"]
    assert head == ["network", "top-1 %", "top-5 %", "agreement %", "SNR dB"]
    assert rows[0] == ["floating point", "84.06", "96.01", "100.00", "–"]
    assert rows[2] == ["quantized", "82.50", "95.50", "92.50", "19.50"]
    assert rows[3] == ["change", "−1.56", "−0.51", "", ""]
    assert "10,000 images" in page.text
    detector = {"fp32": {"bbox_ap": 67.86, "images": 500}, "quantized": {"bbox_ap": 64.68, "images": 500}}
    page, _ = page_of(qmodel, tmp_path, detector)
    assert page.tables["Accuracy"][0] == ["network", "box AP"] and page.tables["Accuracy"][-1] == ["change", "−3.18"]
    assert "Accuracy" not in page_of(qmodel, tmp_path)[0].tables


def test_worst_layers_come_with_an_argument_that_quantize_takes(network, tmp_path):
    qmodel = quantized(network, 3, 3)
    page, _ = page_of(qmodel, tmp_path)
    arguments = re.findall(r"bits=(\{.*?\})", page.text)
    assert 0 < len(arguments) <= 5
    errors = qmodel.report.set_index("name")[["relative_error", "input_error"]]
    ((worst, pair),) = ast.literal_eval(arguments[0]).items()
    assert worst == errors.sum(axis=1).idxmax()
    better = quantized(network, 3, 3, bits={worst: pair}).report.set_index("name")
    side = errors.loc[worst].idxmax()
    assert better[side][worst] < 0.5 * errors[side][worst]


def test_code_histograms_count_every_weight(network):
    qmodel = quantized(network, 3, 4)
    for layer in facts_of_layers(qmodel):
        codes = qmodel.get_submodule(layer.name).codes
        high = 127 if layer.wbits == 8 else 3
        assert (layer.codes.low, layer.codes.high) == (-high, high)
        assert layer.codes.counts.tolist() == [(codes == code).sum().item() for code in range(-high, high + 1)]
        assert layer.codes.zeros == (codes == 0).sum()


def test_half_integers_have_all_their_codes_and_none_at_zero(network, tmp_path):
    qmodel = quantized(network, 2, 4, "bitsplit_plus_midrise")
    _, text = page_of(qmodel, tmp_path)
    layers = [layer for layer in facts_of_layers(qmodel) if layer.wbits == 2]
    for layer in layers:
        codes = qmodel.get_submodule(layer.name).codes
        assert layer.codes.counts.tolist() == [(codes == code).sum().item() for code in range(-2, 2)]
        assert layer.codes.zeros is None
    assert layers and "% zero" not in text and "% ends" in text


def test_outlines_have_the_heights_of_their_counts():
    assert histogram_outline(np.array([1, 0, 4])) == "M0.1 100v-25h.8v25zM2.1 100v-100h.8v100z"
    counts = np.random.default_rng(0).integers(0, 1000, 255)
    height, heights = 0, []
    for move, value in re.findall(r"([vh])(-?\d+)", histogram_outline(counts)):
        if move == "v":
            height -= int(value)
        else:
            heights += [height] * int(value)
    assert np.abs(np.array(heights) - 100 * counts / counts.max()).max() <= 1


def test_error_axis_holds_every_error():
    for errors in ([1e-6, 0.9], [0.01], [0.0], [2.0, 1e-12], [1e-3, 1e-3]):
        axis = ErrorAxis.over(errors)
        assert all(0 <= axis.position(error) <= 100 for error in errors) and len(axis.ticks) >= 2


def test_names_are_text_whatever_they_hold(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential()
    for name in ("<b>&", "\"'><script>", "a\x00\x0b[0]_é", "{{ 7 * 7 }}"):
        network.add_module(name, nn.Conv2d(3, 3, 1))
    page, text = page_of(quantized(network), tmp_path)
    names = [row[0] for row in page.tables["Error by layer"][1:]]
    assert names == ["<b>&", "\"'><script>", "a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}[0]_é", "{{ 7 * 7 }}"]
    assert "<b>" not in text and "<script" not in text


def test_layers_called_several_times_have_a_range_for_each_call(tmp_path):
    qmodel = quantized(Levels())
    assert isinstance(qmodel.one.input_quantizer, CallQuantizers)
    rows = page_of(qmodel, tmp_path)[0].tables["Activation ranges and where they are clipped"][1:]
    assert [row[0] for row in rows] == [f"{name} call {call}" for name in ("one", "two", "head") for call in (1, 2)]


def test_notes_and_a_network_mostly_in_floating_point(tmp_path):
    qmodel = quantized(Odd(), batches=[torch.cat([x, x[:, :1]], dim=1) for x in BATCHES])
    page, _ = page_of(qmodel, tmp_path)
    notes = {row[0]: row[-1] for row in page.tables["Notes"][1:]}
    assert notes == {row["name"]: row["note"] for _, row in qmodel.report.iterrows() if row["note"]}
    assert "the others take 32 bits each" in page.text


@pytest.mark.parametrize("bits", [(4, 4), (4, 32), (32, 4), (32, 32)])
@pytest.mark.parametrize("alone", [True, False])
def test_few_layers_and_sides_in_floating_point(alone, bits, tmp_path):
    torch.manual_seed(2)
    model = nn.Conv2d(3, 2, 1) if alone else nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(288, 2))
    page, _ = page_of(quantized(model, *bits), tmp_path)
    # No layer reads the image quantized.
    assert ("Activation ranges and where they are clipped" in page.tables) == (bits[1] == 4 and not alone)
    assert ("Codes of the integer weights" in page.text) == (bits[0] == 4)


def test_configuration_is_on_the_page(network, tmp_path):
    qmodel = quantized(network)
    qmodel.configuration = {"method": {"name": "bitsplit", "rounds": 100}, "bits": {"wbits": 4, "abits": 4}, "seed": 7}
    page, _ = page_of(qmodel, tmp_path)
    assert "Residual W4A4 · bitsplit" in page.text and "method.rounds" in page.text
    assert torch.__version__ in page.text


def test_copies_and_files_write_the_same_page(network, tmp_path):
    qmodel = quantized(network)
    qmodel.to_html(tmp_path / "first.html", METRICS)
    torch.save(qmodel, tmp_path / "network.pt")
    first = (tmp_path / "first.html").read_bytes()
    for other in (copy.deepcopy(qmodel), torch.load(tmp_path / "network.pt", weights_only=False)):
        assert other.to_html.args[0] is other
        other.to_html(tmp_path / "other.html", METRICS)
        assert (tmp_path / "other.html").read_bytes() == first


def test_a_page_of_a_hundred_layers_is_below_a_megabyte(tmp_path):
    torch.manual_seed(0)
    layers = {f"backbone_layer{i}_with_a_long_name": nn.Conv2d(48, 48, 1) for i in range(104)}
    network = nn.Sequential()
    for name, layer in ({"stem": nn.Conv2d(3, 48, 1)} | layers).items():
        network.add_module(name, layer)
    qmodel = quantized(network, 8, 8, "tflite", batches=BATCHES[:1])
    page_of(qmodel, tmp_path)
    assert (tmp_path / "page.html").stat().st_size < 700_000


@pytest.mark.parametrize(
    ("metrics", "place", "reason"),
    [
        ({"top1": 84.0}, "page.html", "metrics must be"),
        ([1], "page.html", "metrics must be"),
        (None, ".", "is a folder"),
        (None, "file/page.html", "another path"),
    ],
)
def test_what_the_user_can_put_right_is_one_line(network, tmp_path, metrics, place, reason):
    (tmp_path / "file").touch()
    with pytest.raises(bitsplit.InputError, match=reason) as caught:
        quantized(network, 32, 32).to_html(tmp_path / place, metrics)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == [tmp_path / "file"]
    with pytest.raises(bitsplit.InputError, match="report"):
        write_page(network, tmp_path / "page.html")
