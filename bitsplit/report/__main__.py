"""The command line: python -m bitsplit.report [table|figures] [data], or compare FIRST SECOND."""

import argparse
import re
import sys
from pathlib import Path

from bitsplit.data.console import prepare_console
from bitsplit.errors import InputError, one_line
from bitsplit.files import user_path
from bitsplit.report.paired import compare
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
        "what",
        nargs="?",
        choices=(*TABLES, "figures", "compare"),
        help="print this table as well, or draw the figures instead, or compare two records image by image",
    )
    parser.add_argument(
        "of",
        nargs="*",
        help="this data set only, for example glyphs or imagenet; of compare: two files of results/<data>/runs",
    )
    parser.add_argument("--results", type=user_path, default=Path("results"), help="folder of the records")
    arguments = parser.parse_intermixed_args()
    try:
        if arguments.what == "compare":
            if len(arguments.of) != 2:
                raise InputError("compare takes two records: two files of results/<data>/runs")
            print(compare(*map(user_path, arguments.of)))
            return 0
        if len(arguments.of) > 1:
            raise InputError(f"give one data set; got {' '.join(arguments.of)}")
        for text in write_report(arguments.what, "".join(arguments.of), arguments.results):
            print(text)
    except (InputError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def write_report(what: str | None, data: str, results: Path) -> list[str]:
    """Writes what was asked for; returns what to print. "imagenet" stands for "imagenet_500" too."""
    names = sorted(path.parent.name for path in results.glob("*/runs"))
    data_sets = [
        read_records(results, name) for name in names if not data or re.fullmatch(rf"{re.escape(data)}(_\d+)?", name)
    ]
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
