"""The command line: python -m bitsplit.report [table|figures] [data]."""

import argparse
import sys
from pathlib import Path

from bitsplit.errors import InputError
from bitsplit.report import folder
from bitsplit.report.tables import TABLES, write_tables


def main() -> int:
    """Exit code: 0, or 2 where there is no record (one line on stderr)."""
    parser = argparse.ArgumentParser(
        prog="python -m bitsplit.report",
        description="Write the tables under results/ from its records; runs nothing.",
    )
    parser.add_argument(
        "what", nargs="?", choices=(*TABLES, "figures"), help="print this table as well, or draw the figures instead"
    )
    parser.add_argument("data", nargs="?", default="", help="of this data set only, for example glyphs or imagenet")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the records")
    arguments = parser.parse_args()
    try:
        for text in _made(arguments.what, arguments.data, arguments.results):
            print(text)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _made(what: str | None, data: str, results: Path) -> list[str]:
    """Writes what was asked for; returns what to print. "imagenet" stands for "imagenet_500" too."""
    names = sorted(path.parent.name for path in results.glob("*/runs"))
    found = [folder.read(results, name) for name in names if not data or f"{name}_".startswith(f"{data}_")]
    if not any(one.runs for one in found):
        raise InputError(f"no records of {data or 'any data set'} in {results}; run cells first")
    if what == "figures":
        from bitsplit.report import figures  # matplotlib is not needed for tables

        texts = [str(picture) for one in found for picture in figures.write(one, results / one.name / "figures")]
    else:
        written = [write_tables(one, results / one.name) for one in found]
        texts = [f"\n{tables[what]}" for tables in written if what in tables]
    if what and not texts:
        raise InputError(f"no records for {what} of {data or 'any data set'} in {results}; run its cells first")
    return texts


if __name__ == "__main__":
    sys.exit(main())
