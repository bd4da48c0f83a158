"""From records to what people read: tables in Markdown, CSV and LaTeX. Reads files only, runs nothing.

python -m bitsplit.report                   writes every table of every data set under results/
python -m bitsplit.report table4 glyphs     also prints one
"""

import argparse
import sys
from pathlib import Path

import pandas

from bitsplit import record
from bitsplit.errors import InputError

METHOD_TITLES = {
    "fp32": "floating point",
    "tflite": "TF-Lite",
    "tensorrt": "TensorRT",
    "aciq": "ACIQ",
    "aciq_mix": "ACIQ-Mix",
    "lapq": "LAPQ",
    "bitsplit": "Bit-split",
    "bitsplit_per_channel": "Bit-split-per-channel",
}
MODEL_TITLES = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "resnet101": "ResNet-101",
    "vgg16_bn": "VGG-16-BN",
    "efficientnet_lite0": "EfficientNet-Lite0",
}
FULL_IMAGENET = "imagenet"  # the only folder in which the paper's numbers stand beside ours


def cell_table(run: dict) -> str:
    """The short table at the end of a run: floating point, the same with batch-norm re-estimation, quantized."""
    bits = f"W{run['wbits']}A{run['abits']}"
    names = {"fp32": "floating point", "fp32_bn": "floating point, same batch-norm", "quantized": f"quantized {bits}"}
    rows = [
        {
            "network": label,
            "top-1 %": run["metrics"][key]["top1"],
            "top-5 %": run["metrics"][key]["top5"],
            "agreement %": run["metrics"][key]["agreement"],
            "SNR dB": run["metrics"][key]["logits_snr_db"],
        }
        for key, label in names.items()
    ]
    table = pandas.DataFrame(rows).dropna(axis="columns", how="all")
    head = f"{run['model']} · {run['method']} · {bits} · seed {run['seed']} · {run['data']['title']}"
    if skipped := run["metrics"]["quantized"]["skipped"]:
        head += f" ({skipped} damaged ones skipped)"
    text = table.to_string(index=False, na_rep="–", float_format=lambda value: f"{value:.2f}")
    seconds = ", ".join(f"{phase} {value:.1f}" for phase, value in run["seconds"].items())
    return f"\n{head}\n{text}\nseconds: {seconds}"


def interval(percent: float, images: int) -> float:
    """Half width of the 95% interval of an accuracy measured on `images` pictures (binomial), in points."""
    share = percent / 100
    return 196 * (share * (1 - share) / images) ** 0.5


def runs_table(runs: list[dict]) -> pandas.DataFrame:
    """One row a record: accuracy with its interval, floating-point accuracy and the drops against it."""
    rows = []
    for run in runs:
        quantized, fp32, fp32_bn = (run["metrics"][key] for key in ("quantized", "fp32", "fp32_bn"))
        accuracy = quantized["top1"] is not None
        rows.append(
            {
                "model": run["model"],
                "method": run["method"] + (f" ({run['variant']})" if run["variant"] else ""),
                "wbits": run["wbits"],
                "abits": run["abits"],
                "seed": run["seed"],
                "top1": quantized["top1"],
                "interval95": round(interval(quantized["top1"], quantized["images"]), 2) if accuracy else None,
                "top5": quantized["top5"],
                "fp32": fp32["top1"],
                "fp32_bn": fp32_bn["top1"],
                "drop": round(fp32["top1"] - quantized["top1"], 2) if accuracy else None,
                "drop_bn": round(fp32_bn["top1"] - quantized["top1"], 2) if accuracy else None,
                "agreement": quantized["agreement"],
                "images": quantized["images"],
                "seconds": run["seconds"]["total"],
            }
        )
    return pandas.DataFrame(rows)


def table4(runs: list[dict], paper: pandas.DataFrame, beside_paper: bool) -> pandas.DataFrame:
    """Table 4 of the paper: methods × networks at A8W4 and A4W4, top-1 in percent with its 95% interval.

    Networks that the paper does not have follow its own. A cell without a record prints "not run". With `beside_paper`
    the paper's number follows in brackets.
    """
    own = {(run["model"], run["method"], run["wbits"], run["abits"]): run for run in runs if _standard(run)}
    models = list(dict.fromkeys([*paper["model"], *(model for model, *_ in own)]))
    rows = []
    for (abits, wbits, method), published in paper.groupby(["abits", "wbits", "method"], sort=False):
        row = {"setting": "" if method == "fp32" else f"A{abits}W{wbits}", "method": METHOD_TITLES[method]}
        for model in models:
            if method == "fp32":
                found = next((run["metrics"]["fp32"] for key, run in own.items() if key[0] == model), None)
            else:
                run = own.get((model, method, wbits, abits))
                found = run["metrics"]["quantized"] if run else None
            text = f"{found['top1']:.2f} ± {interval(found['top1'], found['images']):.2f}" if found else "not run"
            reported = published.loc[published["model"] == model, "top1"]
            if beside_paper and reported.notna().any():
                text += f" (paper {reported.iloc[0]:.1f})"
            row[MODEL_TITLES.get(model, model)] = text
        rows.append(row)
    return pandas.DataFrame(rows)


def write_tables(results: Path, folder: Path) -> dict[str, str]:
    """Writes every table of one data set's folder as .md, .csv and .tex; returns their Markdown by name."""
    runs = [run for path in sorted((folder / "runs").glob("*.json")) if (run := record.read(path))]
    runs.sort(key=lambda run: (run["model"], -run["wbits"], -run["abits"], run["method"], run["seed"], run["variant"]))
    if not runs:
        return {}
    paper = pandas.read_csv(results / "paper" / "imagenet_table4.csv")
    tables = {"runs": runs_table(runs)}
    if runs[0]["metrics"]["quantized"]["top1"] is not None:
        tables["table4"] = table4(runs, paper, folder.name == FULL_IMAGENET)
    titles = sorted({run["data"]["title"] for run in runs})
    captions = {
        "runs": f"Every run on {'; '.join(titles)}: top-1 and top-5 in percent, drops in points",
        "table4": f"Table 4's methods and networks on {'; '.join(titles)}: top-1 in percent ± 95% interval",
    }
    texts = {}
    for name, table in tables.items():
        shown = table.map(_two_digits)
        body = shown.to_markdown(index=False, disable_numparse=True)
        texts[name] = f"{captions[name]}.\n\n{body}\n"
        record.write_text(folder / f"{name}.md", texts[name])
        record.write_text(folder / f"{name}.csv", table.to_csv(index=False))
        latex = shown.map(_latex)
        record.write_text(folder / f"{name}.tex", latex.to_latex(index=False, caption=captions[name]))
    return texts


def _two_digits(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.2f}" if value == value else ""  # NaN: a column that this row has nothing for
    return value


def _latex(value: object) -> object:
    return value.replace("±", r"$\pm$").replace("_", r"\_") if isinstance(value, str) else value


def _standard(run: dict) -> bool:
    return run["variant"] == "" and run["seed"] == 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the tables under results/ from its records; runs nothing.")
    parser.add_argument("table", nargs="?", choices=("runs", "table4"), help="print this table as well")
    parser.add_argument("data", nargs="?", default="", help="of this data set only, for example glyphs or imagenet")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the records")
    arguments = parser.parse_args()
    folders = sorted(path.parent for path in arguments.results.glob("*/runs"))
    wanted = [f for f in folders if not arguments.data or f"{f.name}_".startswith(f"{arguments.data}_")]
    try:
        if not wanted:
            raise InputError(
                f"no records of {arguments.data or 'any data set'} in {arguments.results}; run cells first"
            )
        for folder in wanted:
            texts = write_tables(arguments.results, folder)
            if arguments.table in texts:
                print(f"\n{texts[arguments.table]}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
