"""A table's three files: Markdown and LaTeX for people, CSV for programs."""

import re
from dataclasses import dataclass
from pathlib import Path

import pandas

from bitsplit.files import write_text

LONGEST_FLOAT = 45  # rows that LaTeX still sets on one page
_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"±": r"$\pm$", "−": "$-$", "+": "$+$", "<": "$<$", ">": "$>$", "–": "--"}
)


@dataclass(frozen=True)
class Table:
    """`cells` for programs; `shown`, all text, its first `heads` columns row labels, and `notes` for people."""

    caption: str
    cells: pandas.DataFrame
    shown: pandas.DataFrame
    heads: int = 0
    notes: tuple[str, ...] = ()


def markdown(table: Table) -> str:
    body = table.shown.to_markdown(index=False, disable_numparse=True)
    notes = "".join(f"\n- {note}" for note in table.notes)
    return f"{table.caption}.\n\n{body}\n" + (f"{notes}\n" if notes else "")


def latex(table: Table) -> str:
    """Needs the packages booktabs and, for a table longer than a page, longtable."""
    escaped = table.shown.map(_escaped).rename(columns=_escaped)
    long = len(escaped) > LONGEST_FLOAT
    heads = list(escaped.columns[: table.heads])
    style = escaped.set_index(heads).rename_axis([None] * len(heads)).style if heads else escaped.style.hide()
    text = style.to_latex(
        caption=_escaped(table.caption),
        environment="longtable" if long else None,
        hrules=True,
        clines="skip-last;data" if heads else None,  # between blocks of the first label
        multirow_align="naive",
    )
    text = re.sub(r"\\cline{[\d-]+}\n(?=\\bottomrule|\\end)", "", text)
    text = re.sub(r"\\cline{[\d-]+}", r"\\midrule", text)
    notes = "".join(f"\\par {_escaped(note)}\n" for note in table.notes)
    return text + notes if long else text.replace("\\end{tabular}\n", f"\\end{{tabular}}\n{notes}")


def write_table(table: Table, folder: Path, name: str) -> str:
    """Writes `folder`/`name`.md, .csv and .tex; returns the Markdown."""
    text = markdown(table)
    write_text(folder / f"{name}.md", text)
    write_text(folder / f"{name}.csv", table.cells.to_csv(index=False))
    write_text(folder / f"{name}.tex", latex(table))
    return text


def _escaped(text: str) -> str:
    return text.translate(_LATEX)
