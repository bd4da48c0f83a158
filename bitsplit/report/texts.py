"""A cell as people read it, and the words that explain it."""

import pandas


def top1_text(cell: pandas.Series) -> str:
    """83.92 ± 0.72 (−0.14; 3 seeds; paper 84.1, −0.18): accuracy, interval, change from floating point, ..."""
    beside = []
    if pandas.notna(cell["drop"]):
        beside.append(signed(-cell["drop"]))
    if cell["seeds"] > 1:
        beside.append(f"{cell['seeds']} seeds")
    return _text(cell, "top1", [*beside, *_paper(cell["paper_top1"], cell["difference"])])


def top5_text(cell: pandas.Series) -> str:
    """95.98 ± 0.38 (paper 96.1, −0.12): accuracy, interval, the paper's."""
    return _text(cell, "top5", _paper(cell["paper_top5"], cell["difference_top5"]))


def legend(table: pandas.DataFrame) -> str:
    """What the numbers of the cells of `table` mean."""
    parts = ["accuracy in percent ± half width of its 95% interval (binomial over the pictures)"]
    if (table["seeds"] > 1).any():
        parts.append("where a number of seeds is given, their mean and the t-interval over them")
    parts.append("in brackets the change from floating point in points")
    if table["paper_top1"].notna().any():
        parts.append("then the paper's number and ours minus the paper's")
    return "; ".join(parts)


def signed(points: float) -> str:
    """Points with their sign, and none where they round to nothing.

    >>> signed(0.123), signed(-0.123), signed(-0.001)
    ('+0.12', '−0.12', '0.00')
    """
    return f"{points:+.2f}".replace("-", "−") if round(points, 2) else "0.00"


def _text(cell: pandas.Series, metric: str, beside: list[str]) -> str:
    number = "not run"
    if cell["seeds"]:
        number = f"{cell[metric]:.2f} ± {cell[f'{metric}_interval']:.2f}"
    return f"{number} ({'; '.join(beside)})" if beside else number


def _paper(published: str, difference: float) -> list[str]:
    if pandas.isna(published):
        return []
    return [f"paper {published}" + (f", {signed(difference)}" if pandas.notna(difference) else "")]
