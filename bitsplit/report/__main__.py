"""The command line: python -m bitsplit.report [table|figures] [data]."""

import argparse
import sys
from pathlib import Path

from bitsplit.data.console import prepare_console
from bitsplit.errors import InputError, one_line
from bitsplit.files import user_path
from bitsplit.report.records import read_records
from bitsplit.report.tables import TABLES, write_tables


def main() -> int:
    """Exit code: 0, or 2 where there is no record, or no place for the tables (one line on stderr)."""
    prepare_console()
    parser = argparse.ArgumentParser(
        prog="python -m bitsplit.report",
        description="Write the tables under results/ from its records; runs nothing.",
    )
    parser.add_argument(
        "what", nargs="?", choices=(*TABLES, "figures"), help="print this table as well, or draw the figures instead"
    )
    parser.add_argument("data", nargs="?", default="", help="of this data set only, for example glyphs or imagenet")
    parser.add_argument("--results", type=user_path, default=Path("results"), help="folder of the records")
    arguments = parser.parse_args()
    try:
        for text in write_report(arguments.what, arguments.data, arguments.results):
            print(text)
    except (InputError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def write_report(what: str | None, data: str, results: Path) -> list[str]:
    """Writes what was asked for; returns what to print. "imagenet" stands for "imagenet_500" too."""
    names = sorted(path.parent.name for path in results.glob("*/runs"))
    data_sets = [read_records(results, name) for name in names if not data or f"{name}_".startswith(f"{data}_")]
    if not any(records.runs for records in data_sets):
        raise InputError(f"no records of {data or 'any data set'} in {results}; run cells first")
    if what == "figures":
        from bitsplit.report.figures import write_figures  # matplotlib is not needed for tables

        paths = [path for records in data_sets for path in write_figures(records, results / records.name / "figures")]
        texts = [str(path) for path in paths]
    else:
        tables = [write_tables(records, results / records.name) for records in data_sets]
        texts = [f"\n{markdown[what]}" for markdown in tables if what in markdown]
    if what and not texts:
        raise InputError(f"no records for {what} of {data or 'any data set'} in {results}; run its cells first")
    return texts


if __name__ == "__main__":
    sys.exit(main())
