"""From records to what people read: tables in Markdown, CSV and LaTeX."""

import pandas


def cell_table(record: dict) -> str:
    """The short table at the end of a run: floating point, the same with batch-norm re-estimation, quantized."""
    bits = f"W{record['wbits']}A{record['abits']}"
    names = {"fp32": "floating point", "fp32_bn": "floating point, same batch-norm", "quantized": f"{bits} quantized"}
    rows = [
        {
            "network": label,
            "top-1 %": record["metrics"][key].get("top1"),
            "top-5 %": record["metrics"][key].get("top5"),
            "agreement %": record["metrics"][key]["agreement"],
            "SNR dB": record["metrics"][key].get("logits_snr_db"),
        }
        for key, label in names.items()
    ]
    table = pandas.DataFrame(rows).dropna(axis="columns", how="all")
    head = f"{record['model']} · {record['method']} · {bits} · seed {record['seed']} · {record['data']['title']}"
    text = table.to_string(index=False, na_rep="–", float_format=lambda value: f"{value:.2f}")
    seconds = ", ".join(f"{phase} {value:.1f}" for phase, value in record["seconds"].items())
    return f"\n{head}\n{text}\nseconds: {seconds}"
