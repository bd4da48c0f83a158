"""A cell as people read it, the words that explain it, and the shape of a table in which methods are compared."""

import pandas

from bitsplit.report.titles import method_title
from bitsplit.settings import FLOAT_BITS


def top1_text(cell: pandas.Series) -> str:
    """83.92 ± 0.72 (−0.14 ± 0.31; 3 seeds, spread 0.08; paper 84.1, −0.18): accuracy, interval, change from floating
    point with its own, ..."""
    remarks = []
    if pandas.notna(cell["drop"]):
        remarks.append(drop_text(cell))
    if cell["seeds"] > 1:
        remarks.append(f"{cell['seeds']} seeds, spread {cell['top1_spread']:.2f}")
    return _accuracy_text(cell, "top1", [*remarks, *_paper_text(cell["paper_top1"], cell["difference"])])


def top5_text(cell: pandas.Series) -> str:
    """95.98 ± 0.38 (paper 96.1, −0.12): accuracy, interval, the paper's."""
    return _accuracy_text(cell, "top5", _paper_text(cell["paper_top5"], cell["difference_top5"]))


def legend(table: pandas.DataFrame) -> str:
    """What the numbers of the cells of `table` mean."""
    parts = ["accuracy in percent ± half width of its 95% interval (binomial over the images)"]
    change = "in brackets the change from floating point in points"
    if table["drop_interval"].notna().any():
        change += " ± half width of its 95% interval (paired, image by image)"
    parts.append(change)
    if (table["seeds"] > 1).any():
        parts.append("where a number of seeds is given, means over them and the standard deviation of top-1")
    if table["paper_top1"].notna().any():
        parts.append("then the paper's number and ours minus the paper's")
    return "; ".join(parts)


def drop_text(cell: pandas.Series) -> str:
    """−0.14 ± 0.31: the change from floating point, and half the width of its interval where there is one."""
    return signed(-cell["drop"]) + (f" ± {cell['drop_interval']:.2f}" if pandas.notna(cell["drop_interval"]) else "")


def signed(points: float) -> str:
    """Points with their sign, and none where they round to nothing.

    >>> signed(0.123), signed(-0.123), signed(-0.001)
    ('+0.12', '−0.12', '0.00')
    """
    return f"{points:+.2f}".replace("-", "−") if round(points, 2) else "0.00"


def number_text(value: object, digits: int = 2) -> str:
    """A float with so many digits, anything else as it is, and a dash where there is nothing."""
    if pandas.isna(value):
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def bits_text(cells: pandas.DataFrame, pattern: str = "W{wbits}A{abits}") -> pandas.Series:
    """The bit-widths of each cell; nothing for floating point."""
    return pandas.Series(
        [
            "" if wbits == FLOAT_BITS else pattern.format(wbits=wbits, abits=abits)
            for wbits, abits in zip(cells["wbits"], cells["abits"], strict=True)
        ],
        cells.index,
    )


def methods_by_column(cells: pandas.DataFrame, columns: pandas.Series, texts: pandas.Series) -> pandas.DataFrame:
    """The layout of the paper's Tables 4 and 5: one row a setting and method, one column for each of `columns`."""
    table = pandas.DataFrame(
        {
            "setting": bits_text(cells, "A{abits}W{wbits}"),
            "method": cells["method"].map(method_title),
            "column": columns,
            "text": texts,
        }
    )
    wide = table.pivot_table("text", ["setting", "method"], "column", aggfunc="first", sort=False)
    return wide.rename_axis(columns=None).reset_index()


def _accuracy_text(cell: pandas.Series, metric: str, remarks: list[str]) -> str:
    number = "not run"
    if cell["seeds"]:
        number = f"{cell[metric]:.2f} ± {cell[f'{metric}_interval']:.2f}"
    return with_remarks(number, remarks)


def with_remarks(number: str, remarks: list[str]) -> str:
    """The number, and in brackets behind it what there is to say of it."""
    return f"{number} ({'; '.join(remarks)})" if remarks else number


def _paper_text(number: str, difference: float) -> list[str]:
    if pandas.isna(number):
        return []
    return [f"paper {number}" + (f", {signed(difference)}" if pandas.notna(difference) else "")]
