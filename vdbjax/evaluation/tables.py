"""Tables for the eye, in Markdown."""

from collections.abc import Iterable, Sequence

import numpy as np


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The table, a newline at its end; cells that a row has not are empty."""
    lines = [heads, ["---"] * len(heads), *([*row, *[""] * (len(heads) - len(row))] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def mean_and_spread(values: Sequence[float | int], form: str = ".2f") -> str:
    """`mean ± deviation` (n - 1), each written by `form`; of one value, the value alone."""
    mean = format(float(np.mean(values)), form)
    return f"{mean} ± {format(float(np.std(values, ddof=1)), form)}" if len(values) > 1 else mean
