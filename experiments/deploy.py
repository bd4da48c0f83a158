"""What quantized networks are worth outside: size, accuracy and time of packed and ONNX files against floating point.

Command:  make deploy   (or: python experiments/deploy.py [--networks resnet18] [--bits W4A4] [--images 1000], or on
          ImageNet: python experiments/deploy.py --networks efficientnet_lite0 --root FOLDER)
Data:     glyphs, embedded, or a folder of ImageNet; needs the extra `onnx`
Expected: 2 hours for the four networks on 2 cores; bit-split with the settings of the tables
Writes:   results/glyphs/deploy.md, .csv and .tex (or in the folder of the data); rows of other cells stay
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

import pandas
import torch
from deploy_files import milliseconds, session_of, write_float
from hydra import compose
from script import ROOT, check_place, configurations, in_one_line, parser_of, positive, use_one_thread
from torch import Tensor, nn

import bitsplit
from bitsplit import ptq
from bitsplit.files import user_path
from bitsplit.progress import progress
from bitsplit.report.render import Table, write_table
from bitsplit.report.titles import MODEL_TITLES, PAPER_CLASSIFIERS, in_order, model_title
from bitsplit.runs.arguments import readable_arguments
from bitsplit.runs.experiment import Run

IMAGES = 10_000  # of the committed cells
BITS = ("W8A8", "W4A8", "W4A4", "W3A3")
NOTES = (
    "simulated: the network in torch that `bitsplit.quantize` returns; loaded: from the packed file into the "
    "floating-point architecture; ONNX: the file in onnxruntime with its default options; integer: the ONNX file with "
    'form="integer"',
    "agreement: images with the same top-1 class as the simulation, in percent",
    "size: of the file, and its ratio to the float32 state dict",
    "ms: one image in onnxruntime on one thread, the best of interleaved runs",
    "Four bits buy size, not CPU time: onnxruntime has no convolution of 4-bit integers. The ONNX form dequantizes and "
    "convolves in floating point, the integer form widens codes to 8 bits and rescales sums apart. For the speed of "
    "8-bit kernels a network's additions and outputs must be quantized as well, and its weights kept in 8 bits, so "
    "that onnxruntime can fuse whole layers into integer ones",
)


def run_of(name: str, bits: str, arguments: argparse.Namespace) -> Run:
    wbits, abits = re.fullmatch(r"W(\d)A(\d)", bits).groups()
    data = ["data=glyphs", f"data.validation_images={arguments.images}"]
    if arguments.root:
        data = ["data=imagenet", f"data.root={arguments.root}"]
    keys = [f"model={name}", *data, f"wbits={wbits}", f"abits={abits}", "method=bitsplit", *arguments.set]
    return Run.of(compose("config", readable_arguments(keys)))


def cell(run: Run, what: str, folder: Path) -> dict:
    """Sizes, accuracies and times of one network at one pair of bit-widths; its files go into `folder`."""
    task = run.bench.task
    known = run.bench.known(run.method, run.settings)
    quantized = ptq.quantize(task.module, run.bench.calibration, method=run.method, settings=run.settings, known=known)
    batches = list(task.data.validation(task.network.preprocessing, 250))
    one = batches[0][0][:1].contiguous()
    paths = {form: folder / f"{form}.onnx" for form in ("float32", "float", "integer")}
    packed = folder / "packed.safetensors"
    bitsplit.save(quantized, packed)
    write_float(task.module, one, paths["float32"])
    for form in ("float", "integer"):
        bitsplit.export_onnx(quantized, paths[form], one, form)
    networks = {
        "float32": task.module,
        "simulated": quantized,
        "loaded": bitsplit.load(packed, task.module),
        "onnx": session_of(paths["float"]),
        "onnx_integer": session_of(paths["integer"]),
    }
    sizes = {"packed": packed, "onnx": paths["float"], "onnx_integer": paths["integer"]}
    return {
        "model": task.network.name,
        "wbits": run.settings.bits.wbits,
        "abits": run.settings.bits.abits,
        "images": sum(len(labels) for _, labels in batches),
        "float32_bytes": sum(value.numel() * 4 for value in task.module.state_dict().values()),
        **{f"{key}_bytes": path.stat().st_size for key, path in sizes.items()},
        **compared(networks, batches, what),
        **{f"{form}_ms": value for form, value in milliseconds(paths, one).items()},
    }


@torch.inference_mode()
def compared(networks: dict[str, nn.Module], batches: list[tuple[Tensor, Tensor]], what: str) -> dict[str, float]:
    """Top-1 of every network, and its agreement with the simulation, in percent; and whether what was loaded gives the
    simulation's very numbers."""
    classes, same = {name: [] for name in networks}, True
    for images, _ in progress(batches, what):
        logits = {name: network(images) for name, network in networks.items()}
        same = same and torch.equal(logits["loaded"], logits["simulated"])
        for name, values in logits.items():
            classes[name].append(values.argmax(1))
    labels = torch.cat([labels for _, labels in batches])
    found = {name: torch.cat(values) for name, values in classes.items()}
    top1 = {f"{name}_top1": _percent(values == labels) for name, values in found.items()}
    outside = ("loaded", "onnx", "onnx_integer")
    agreement = {f"{name}_agreement": _percent(found[name] == found["simulated"]) for name in outside}
    return top1 | agreement | {"loaded_bit_for_bit": same}


def _percent(hits: Tensor) -> float:
    return round(100 * hits.double().mean().item(), 4)


def with_earlier(cell: dict, path: Path) -> pandas.DataFrame:
    """The cells of an earlier run in `path`, in the tables' order, with this one new or in the place of its own."""
    cells = pandas.concat([pandas.read_csv(path) if path.exists() else None, pandas.DataFrame([cell])])
    cells = cells.drop_duplicates(["model", "wbits", "abits"], keep="last")
    order = in_order(cells["model"], MODEL_TITLES)
    return cells.sort_values(
        ["model", "wbits", "abits"], key=lambda values: values.map(order.index) if values.name == "model" else -values
    )


def table_of(table: pandas.DataFrame, title: str) -> Table:
    """`table`: what `cell` returns, a row each; `title`: of the data."""
    shown = pandas.DataFrame(
        {
            "network": table["model"].map(model_title),
            "bits": [f"W{wbits}A{abits}" for wbits, abits in zip(table["wbits"], table["abits"], strict=True)],
            "images": table["images"].map("{:,}".format),
            "float32": table["float32_bytes"].map("{:,.0f}".format),
        }
    )
    for key, heading in {"packed": "packed", "onnx": "ONNX"}.items():
        sizes, ratios = table[f"{key}_bytes"], table[f"{key}_bytes"] / table["float32_bytes"]
        shown[heading] = [f"{size:,} ({ratio:.3f})" for size, ratio in zip(sizes, ratios, strict=True)]
    for key in ("float32", "simulated", "loaded", "onnx", "onnx_integer"):
        shown[f"top-1 {key.replace('onnx_', '').replace('onnx', 'ONNX')}"] = table[f"{key}_top1"].map("{:.2f}".format)
    for key in ("onnx", "onnx_integer"):
        shown[f"agreement {key.replace('onnx_', '').replace('onnx', 'ONNX')}"] = table[f"{key}_agreement"].map(
            "{:.2f}".format
        )
    for key, heading in {"float32": "float32", "float": "ONNX", "integer": "integer"}.items():
        shown[f"ms {heading}"] = table[f"{key}_ms"].map("{:.2f}".format)
    same = table["loaded_bit_for_bit"].all()
    loaded = "every loaded network gives the simulation's logits " + ("bit for bit" if same else "NOT bit for bit")
    caption = f"Quantized networks outside torch on {title}: {loaded}"
    return Table(caption, table, shown, heads=2, notes=NOTES)


@in_one_line
def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", default=PAPER_CLASSIFIERS, help="default: the paper's four")
    parser.add_argument("--bits", nargs="+", choices=BITS, default=BITS, help="default: all four")
    parser.add_argument("--images", type=positive, default=IMAGES, help=f"glyphs to validate on (default: {IMAGES})")
    parser.add_argument("--root", type=user_path, help="folder of ImageNet, instead of glyphs: all its images")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="further keys of run.py")
    parser.add_argument("--results", type=user_path, default=ROOT / "results", help="folder of the results")
    arguments = parser.parse_args()
    fewer = [f"--images={arguments.images}"] if arguments.images != IMAGES else []
    check_place(arguments.results, [*arguments.set, *fewer])
    use_one_thread()
    text = ""
    with configurations(), tempfile.TemporaryDirectory() as scratch:
        for name in arguments.networks:
            for bits in arguments.bits:
                what = f"{name} {bits}"
                print(f"{what} …", flush=True)
                run = run_of(name, bits, arguments)
                measured, data = cell(run, what, Path(scratch)), run.bench.task.data
                folder = arguments.results / data.name
                table = table_of(with_earlier(measured, folder / "deploy.csv"), data.title)
                text = write_table(table, folder, "deploy")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
