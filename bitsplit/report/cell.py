"""What a run prints: a short table at its end, or one line where it is one cell of many."""

import pandas

from bitsplit.report.titles import FLOATING_POINT


def cell_table(run: dict) -> str:
    """The short table at the end of a run: floating point, the same with batch-norm re-estimation, quantized."""
    bits = f"W{run['wbits']}A{run['abits']}"
    names = FLOATING_POINT | {"quantized": f"quantized {bits}"}
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


def cell_line(run: dict) -> str:
    """Names and bits of a run, its top-1 accuracy and drop in percent (without labels the agreement), its seconds.

    >>> metrics = {"fp32": {"top1": 80.0}, "quantized": {"top1": 79.5}}
    >>> run = {"model": "resnet18", "method": "bitsplit", "wbits": 4, "abits": 4, "seed": 0, "variant": ""}
    >>> cell_line(run | {"metrics": metrics, "seconds": {"total": 12.3}})
    'resnet18 bitsplit W4A4 s0: top-1 79.50 (-0.50), 12 s'
    """
    quantized, fp32 = run["metrics"]["quantized"], run["metrics"]["fp32"]
    bits = f"W{run['wbits']}A{run['abits']}"
    if quantized["top1"] is None:
        result = f"agreement {quantized['agreement']:.2f}"
    else:
        result = f"top-1 {quantized['top1']:.2f} ({quantized['top1'] - fp32['top1']:+.2f})"
    names = f"{run['model']} {run['method']} {bits} s{run['seed']} {run['variant']}".rstrip()
    return f"{names}: {result}, {run['seconds']['total']:.0f} s"
