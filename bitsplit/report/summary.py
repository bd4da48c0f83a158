"""What a run prints: a short table at its end, or one line where it is one of many."""

import pandas

from bitsplit.report.titles import FLOATING_POINT, HEADLINES, METRIC_TITLES


def run_table(run: dict) -> str:
    """The short table at the end of a run: floating point, the same with batch-norm re-estimation where that was
    measured, quantized."""
    bits = f"W{run['wbits']}A{run['abits']}"
    names = FLOATING_POINT | {"quantized": f"quantized {bits}"}
    rows = [
        {
            "network": label,
            **{title: run["metrics"][key].get(metric) for metric, title in METRIC_TITLES.items()},
        }
        for key, label in names.items()
        if key in run["metrics"]
    ]
    table = pandas.DataFrame(rows).dropna(axis="columns", how="all")
    head = f"{run['model']} · {run['method']} · {bits} · seed {run['seed']} · {run['data']['title']}"
    if skipped := run["metrics"]["quantized"]["skipped"]:
        head += f" ({skipped} damaged ones skipped)"
    text = table.to_string(index=False, na_rep="–", float_format=lambda value: f"{value:.2f}")
    seconds = ", ".join(f"{phase} {value:.1f}" for phase, value in run["seconds"].items())
    return f"\n{head}\n{text}\nseconds: {seconds}"


def run_line(run: dict) -> str:
    """Names and bits of a run, its top-1 accuracy and drop in percent (without labels the agreement), its seconds.

    >>> metrics = {"fp32": {"top1": 80.0}, "quantized": {"top1": 79.5}}
    >>> run = {"model": "resnet18", "method": "bitsplit", "wbits": 4, "abits": 4, "seed": 0, "variant": ""}
    >>> run_line(run | {"metrics": metrics, "seconds": {"total": 12.3}})
    'resnet18 bitsplit W4A4 s0: top-1 79.50 (-0.50), 12 s'
    """
    quantized, fp32 = run["metrics"]["quantized"], run["metrics"]["fp32"]
    bits = f"W{run['wbits']}A{run['abits']}"
    headlines = [metric for metric in HEADLINES if quantized.get(metric) is not None]
    # The agreement is worth a line where there is nothing else.
    headlines = [metric for metric in headlines if metric != "agreement"] or headlines
    result = ", ".join(
        f"{METRIC_TITLES[metric].removesuffix(' %')} {quantized[metric]:.2f} ({quantized[metric] - fp32[metric]:+.2f})"
        for metric in headlines
    )
    names = f"{run['model']} {run['method']} {bits} s{run['seed']} {run['variant']}".rstrip()
    return f"{names}: {result}, {run['seconds']['total']:.0f} s"
