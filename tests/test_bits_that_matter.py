"""The figures of VAEs, drawn from made-up numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vdbjax.evaluation.bits_that_matter import (
    Measured,
    draw_against_distortion,
    draw_layer_rates,
    draw_over_iterations,
    draw_rows,
    draw_side_by_side,
    draw_two_stages,
)
from vdbjax.evaluation.sample_grid import columns_of, write_grid, write_pairs


def made_up(name: str, gamma: float | None, distortion: float, first_layers: int = 0) -> Measured:
    draw = np.random.default_rng(0)
    pictures = draw.integers(0, 256, size=(2, 4, 8, 8, 3)).astype(np.uint8)
    rates = 30.0 / distortion * draw.random(6)
    return Measured(name, gamma, distortion, rates, -5000.0, 4.0 + distortion / 10, *pictures, first_layers)


SINGLE = [made_up("low", 8.0, 8.1), made_up("high", 2.0, 2.05), made_up("elbo", None, 0.4)]
DOUBLE = [made_up("second", 2.0, 1.9, 3), made_up("third", 0.5, 0.51, 3)]
LINES = [{"iteration": i, "vae/distortion": 50 / i, "vae/rate_nats": [900 / i, 800 / i]} for i in range(1, 50)]
GRID = np.random.default_rng(1).integers(0, 256, size=(19, 39, 3)).astype(np.uint8)

FIGURES = {
    "rows": lambda out: draw_rows([(run.title, run.samples) for run in SINGLE], out),
    "side by side": lambda out: draw_side_by_side([("early", GRID), ("late", GRID[..., 0])], out),
    "against distortion": lambda out: draw_against_distortion(SINGLE, out),
    "two stages": lambda out: draw_two_stages(SINGLE, DOUBLE, out),
    "over iterations": lambda out: draw_over_iterations([("low", 8.0, LINES), ("elbo", None, LINES)], out),
    "layer rates": lambda out: draw_layer_rates([*SINGLE, *DOUBLE], out),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES.keys())
def test_each_figure_is_drawn(tmp_path, draw):
    draw(tmp_path / "figure.png")
    pixels = np.asarray(Image.open(tmp_path / "figure.png").convert("L"))
    assert min(pixels.shape) > 100
    assert len(np.unique(pixels)) > 10


def test_a_title_says_what_was_asked_for_and_what_came(tmp_path):
    assert "γ = 8, D = 8.1" in SINGLE[0].title
    assert "ELBO, D = 0.4" in SINGLE[2].title
    assert f"rate {SINGLE[0].layer_rates.sum():.1f} nats" in SINGLE[0].title


@pytest.mark.parametrize(("count", "shape"), [(16, (259, 519)), (19, (259, 519)), (3, (129, 194))])
def test_rows_stand_over_their_reconstructions(tmp_path, count, shape):
    """Of 16 and 19 pictures two rows of 8, each with its own below; of 3 one. Each pixel is 16 x 16 times there."""
    above = (100 + np.arange(count, dtype=np.uint8)).reshape(-1, 1, 1, 1) + np.zeros((count, 4, 4, 1), np.uint8)
    write_pairs(tmp_path / "pairs.png", above, above + 100)
    picture = np.asarray(Image.open(tmp_path / "pairs.png"))
    assert picture.shape == shape
    assert np.all(picture[0:64, 0] == 100)
    assert np.all(picture[65:129, 0] == 200)
    assert picture[-1, -1] == 100 + 100 + (count // 8 * 8 or count) - 1


@pytest.mark.parametrize(("num_classes", "columns"), [(0, 4), (5, 5), (20, 12)], ids=["none", "five", "many"])
def test_each_class_has_a_column_of_its_own(tmp_path, num_classes, columns):
    """Twelve samples that take the classes in turn, each as bright as its class."""
    labels = np.arange(12) % max(1, num_classes)
    images = np.broadcast_to(labels[:, None, None, None], (12, 64, 64, 1)).astype(np.uint8)
    write_grid(tmp_path / "grid.png", images, gap=0, columns=columns_of(SimpleNamespace(num_classes=num_classes)))
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    rows = -(-12 // columns)
    assert grid.shape == (64 * rows, 64 * columns)
    if num_classes:
        np.testing.assert_array_equal(grid[0, ::64], np.arange(columns))
