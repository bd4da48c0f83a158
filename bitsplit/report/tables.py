"""Every table by its name, and the files of all of them."""

from pathlib import Path

from bitsplit.report.against_paper import against_paper
from bitsplit.report.conventions import table_conventions
from bitsplit.report.depthwise import depthwise
from bitsplit.report.records import Records
from bitsplit.report.render import write_table
from bitsplit.report.runs_table import runs_table
from bitsplit.report.sweeps import table_both, table_two_bits, table_weights
from bitsplit.report.table4 import table4, table4_equal
from bitsplit.report.table5 import table5

TABLES = {
    "runs": runs_table,
    "table4": table4,
    "table4_equal": table4_equal,
    "table_weights": table_weights,
    "table_both": table_both,
    "table_two_bits": table_two_bits,
    "table_conventions": table_conventions,
    "depthwise": depthwise,
    "table5": table5,
    "against_paper": against_paper,
}


def write_tables(records: Records, folder: Path) -> dict[str, str]:
    """Writes every table of which a cell has a record as `folder`/<name>.md, .csv and .tex; their Markdown by name."""
    tables = {name: table_of(records) for name, table_of in TABLES.items()}
    return {name: write_table(table, folder, name) for name, table in tables.items() if table is not None}
