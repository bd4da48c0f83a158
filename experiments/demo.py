"""Computes the main job anew and compares it with the committed records, which it does not touch.

Command:  make demo   (or: python experiments/demo.py)
Data:     glyphs, embedded; 22,800 pictures are drawn on first use
Expected: ResNet-18 in floating point, TF-Lite and bit-split at W4A4, half a minute on 2 cores
"""

import sys
import tempfile
from pathlib import Path

import numba
import torch
from hydra import compose, initialize_config_dir

from bitsplit import cell, record, report

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("tflite", "bitsplit")
OVERRIDES = ["model=resnet18", "data=glyphs", "wbits=4", "abits=4"]


def compare(name: str, ours: float, committed: float | None) -> str:
    """One number, and whether it equals the committed record's or by how much it differs."""
    if committed is None:
        verdict = "there is no committed record"
    elif ours == committed:
        verdict = "equals the committed record"
    else:
        verdict = f"differs by {ours - committed:+.2f}"
    return f"  {name:<44} {ours:6.2f}   {verdict}"


def main() -> None:
    torch.set_num_threads(1)  # as the committed records: with more, sums are added in another order
    numba.set_num_threads(1)
    runs, lines = {}, []
    floating_point = {"fp32": "floating point", "fp32_bn": "floating point, same batch-norm"}
    with tempfile.TemporaryDirectory() as scratch, initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for method in METHODS:
            print(f"running {method} …", flush=True)
            config = compose("config", [*OVERRIDES, f"method={method}", f"results={scratch}"])
            runs[method], path, _ = cell.run(config)
            committed = record.read(ROOT / "results" / path.relative_to(scratch))
            names = {"quantized": f"{report.METHOD_TITLES[method]} W4A4"}
            if method == "bitsplit":
                names = floating_point | names
            for key, name in names.items():
                for metric in ("top1", "top5"):
                    ours = runs[method]["metrics"][key][metric]
                    theirs = committed["metrics"][key][metric] if committed else None
                    lines.append(compare(f"{name}, {metric.replace('top', 'top-')} %", ours, theirs))
    for run in runs.values():
        print(report.cell_table(run))
    print("\nAgainst the committed records (results/glyphs/runs):")
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
