"""From records to what people read: tables in Markdown, CSV and LaTeX, and figures. Reads files only, runs nothing.

python -m bitsplit.report                   writes every table of every data set under results/
python -m bitsplit.report table4 glyphs     also prints one
python -m bitsplit.report figures glyphs    draws top-1 against bit-width
"""

from bitsplit.report.accuracy import interval
from bitsplit.report.summary import run_line, run_table
from bitsplit.report.titles import METHOD_TITLES, MODEL_TITLES

__all__ = ["METHOD_TITLES", "MODEL_TITLES", "run_line", "run_table", "interval"]
