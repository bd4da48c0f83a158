"""The table of rivals, from their records alone."""

import pandas

from bitsplit.report.paired import answers_of, paired_difference
from bitsplit.report.render import Table
from bitsplit.report.texts import bits_text, number_text, signed
from bitsplit.report.titles import METHOD_TITLES, MODEL_TITLES, model_title

OURS = "bitsplit_plus"  # what every other row is compared with, as it is shipped: batch-norm left alone
TITLES = METHOD_TITLES | {
    "brevitas_gptq": "GPTQ (brevitas)",
    "brevitas_gpfq": "GPFQ (brevitas)",
    "brevitas_qronos": "Qronos (brevitas)",
    "brevitas_learned_rounding": "learned rounding (brevitas)",
    "aimet_seq_mse": "SeqMSE (aimet-torch)",
    "aimet_adaround": "AdaRound (aimet-torch)",
}
BATCH_NORM = {"none": "trained", "after": "re-estimated after", "before": "re-estimated first"}


def rival_cells(records: list[dict]) -> pandas.DataFrame:
    """One row a record, in the order of the table; numbers are missing where a rival could not run, with the reason."""
    rows = []
    ours = {_place(record): record for record in records if _is_ours(record)}
    for record in sorted(records, key=_order):
        row = {key: record[key] for key in ("network", "wbits", "abits", "rival", "batch_norm", "package")}
        row["reason"] = record.get("reason", "")
        base = ours.get(_place(record))
        if "metrics" in record:
            row |= {key: record["metrics"][key] for key in ("top1", "agreement", "logits_snr_db", "images")}
            row["thread_seconds"] = record["thread_seconds"]
        if "metrics" in record and base is not None and base["metrics"]["images"] == row["images"]:
            difference = paired_difference(answers_of(base["metrics"]), answers_of(record["metrics"]))
            row["ours_minus_theirs"], row["interval"] = difference.points, difference.interval
            row["verdict"] = difference.verdict
            row["seconds_of_ours"] = record["thread_seconds"] / base["thread_seconds"]
        rows.append(row)
    numbers = ("top1", "agreement", "logits_snr_db", "images", "thread_seconds", "ours_minus_theirs", "interval")
    columns = [*rows[0], *(name for name in (*numbers, "verdict", "seconds_of_ours") if name not in rows[0])]
    return pandas.DataFrame(rows).reindex(columns=columns).round(4)


def rivals_table(records: list[dict]) -> Table:
    """`records` as `experiments/rivals.py` writes them, at least one."""
    cells = rival_cells(records)
    shown = pandas.DataFrame(
        {
            "network": cells["network"].map(model_title),
            "bits": bits_text(cells),
            "method": cells["rival"].map(TITLES),
            "batch-norm": cells["batch_norm"].map(BATCH_NORM),
            "top-1 %": cells["top1"].map(number_text),
            "agreement %": cells["agreement"].map(number_text),
            "SNR dB": cells["logits_snr_db"].map(number_text),
            "plus minus this": [_difference_text(cell) for _, cell in cells.iterrows()],
            "verdict": [_verdict(cell) for _, cell in cells.iterrows()],
            "thread s": cells["thread_seconds"].map(lambda seconds: number_text(seconds, digits=0)),
        }
    )
    caption = "Rivals on equal terms: " + "; ".join(sorted({record["data"] for record in records}))
    notes = (
        "same calibration images, symmetric grid by output channel and tensor, first and last layer at 8 bits, image "
        "not quantized; the rivals' input scales are those of bit-split",
        "batch-norm: as trained; re-estimated in the quantized network; or in the floating-point network, which is "
        "then quantized",
        "plus minus this: top-1 of Bit-split-plus (batch-norm as trained) minus that of the row, on the same images, "
        "with the 95% interval of the paired difference (Wald); above, level or below is where ours stands by it and "
        "by McNemar's exact test",
        "thread s: seconds of one processor core for the whole quantization, calibration included, evaluation not",
        "steps a layer: AdaRound 1,000, a fifteenth of aimet's default; learned rounding brevitas' 1,000, of 32 images",
    )
    return Table(caption, cells, shown, heads=2, notes=notes)


def _place(record: dict) -> tuple:
    return record["network"], record["wbits"], record["abits"]


def _order(record: dict) -> tuple:
    ranks = (list(MODEL_TITLES), list(TITLES), list(BATCH_NORM))
    network, rival, batch_norm = (
        names.index(record[key]) for names, key in zip(ranks, ("network", "rival", "batch_norm"), strict=True)
    )
    return network, -record["wbits"], record["abits"], rival, batch_norm


def _is_ours(cell: pandas.Series | dict) -> bool:
    return (cell["rival"], cell["batch_norm"]) == (OURS, "none")


def _difference_text(cell: pandas.Series) -> str:
    if pandas.isna(cell["ours_minus_theirs"]) or _is_ours(cell):
        return "–"
    return f"{signed(cell['ours_minus_theirs'])} ± {cell['interval']:.2f}"


def _verdict(cell: pandas.Series) -> str:
    if cell["reason"]:
        return cell["reason"]
    if pandas.isna(cell["ours_minus_theirs"]) or _is_ours(cell):
        return "–"
    return cell["verdict"]
