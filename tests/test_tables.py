"""Tables in Markdown: every row as wide as the heads, deviations only where there are some."""

import pytest

from vdbjax.evaluation.tables import markdown_table, mean_and_spread


def test_rows_that_end_early_are_filled_up() -> None:
    """So that every renderer shows all columns."""
    table = markdown_table(("method", "error", "paper"), [("vail", "0.1", "0.2"), ("bc",)])
    assert table == "| method | error | paper |\n| --- | --- | --- |\n| vail | 0.1 | 0.2 |\n| bc |  |  |\n"


@pytest.mark.parametrize(
    ("values", "form", "text"),
    [
        ((1.0, 2.0, 3.0), ".2f", "2.00 ± 1.00"),
        ((0.25,), ".2f", "0.25"),
        ((float("nan"), 1.0), ".2f", "nan ± nan"),
        ((1000, 3000), ",.0f", "2,000 ± 1,414"),
    ],
)
def test_the_deviation_is_that_of_a_sample(values: tuple[float | int, ...], form: str, text: str) -> None:
    """Divided by n - 1; one value has none."""
    assert mean_and_spread(values, form) == text
