"""The short table at the end of a run."""

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
