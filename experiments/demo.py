"""Computes the main job anew and compares it with the committed records, which it does not touch.

Command:  make demo   (or: python experiments/demo.py)
Data:     glyphs, embedded; 18,000 images are drawn on first use
Expected: ResNet-18 in floating point, TF-Lite and bit-split at W4A4, half a minute on 2 cores
"""

import sys
import tempfile

from hydra import compose
from script import ROOT, configurations, use_one_thread

from bitsplit import report
from bitsplit.report import record
from bitsplit.report.titles import FLOATING_POINT
from bitsplit.runs import experiment

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
    use_one_thread()
    runs, lines = {}, []
    with tempfile.TemporaryDirectory() as scratch, configurations():
        for method in METHODS:
            print(f"running {method} …", flush=True)
            config = compose("config", [*OVERRIDES, f"method={method}", f"results={scratch}"])
            runs[method], path, _ = experiment.run(config)
            committed = record.read(ROOT / "results" / path.relative_to(scratch))
            names = {"quantized": f"{report.METHOD_TITLES[method]} W4A4"}
            if method == "bitsplit":
                names = FLOATING_POINT | names
            for key, name in names.items():
                for metric in ("top1", "top5"):
                    ours = runs[method]["metrics"][key][metric]
                    theirs = committed["metrics"][key][metric] if committed else None
                    lines.append(compare(f"{name}, {metric.replace('top', 'top-')} %", ours, theirs))
    for run in runs.values():
        print(report.run_table(run))
    print("\nAgainst the committed records (results/glyphs/runs):")
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
