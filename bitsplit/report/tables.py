"""Every table by its name, and the files of all of them."""

from pathlib import Path

from bitsplit.report.against_paper import against_paper
from bitsplit.report.comparison import table4, table4_equal
from bitsplit.report.folder import Folder
from bitsplit.report.render import write
from bitsplit.report.runs import runs_table
from bitsplit.report.sweeps import table_both, table_weights
from bitsplit.report.table5 import table5

TABLES = {
    "runs": runs_table,
    "table4": table4,
    "table4_equal": table4_equal,
    "table_weights": table_weights,
    "table_both": table_both,
    "table5": table5,
    "against_paper": against_paper,
}


def write_tables(folder: Folder, path: Path) -> dict[str, str]:
    """Writes every table of which a cell has a record as `path`/<name>.md, .csv and .tex; their Markdown by name."""
    made = {name: make(folder) for name, make in TABLES.items()}
    return {name: write(table, path, name) for name, table in made.items() if table is not None}
