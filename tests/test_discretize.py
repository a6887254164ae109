"""Codes for real numbers on a grid: exact round trips both ways, and lengths held against SciPy's distributions."""

import zlib

import numpy as np
import pytest
from coded import state
from scipy import special

from vdbjax.coding import any_scale, common_scale, discretize, masses, rans

CODECS = {"gaussian": discretize.gaussian, "logistic": discretize.logistic}
CDF = {"gaussian": special.ndtr, "logistic": special.expit}
TAIL = {
    "gaussian": lambda z: np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi),
    "logistic": lambda z: 0.25 / np.cosh(z / 2) ** 2,
}
SWEEP = [
    (-14, -32),
    (-14, -24),
    (-14, -18),
    (-14, -14),
    (-14, -11),
    (-10, -32),
    (-6, -20),
    (-6, -6),
    (0, -32),
    (8, -32),
]
"""log2 of the standard deviation and of delta."""

PINNED = [421198755, 2744415884, 3012762430, 646063836]
PINNED_RUNS = [936889568, 367219660, 402948203, 1510445834, 1670316856, 1687949207]


def probability(distribution, low, high):
    """Of [low, high], standardised: the difference of the CDF on the side where it is small, or density times width."""
    mirrored = low > 0
    left, right = np.where(mirrored, -high, low), np.where(mirrored, -low, high)
    narrow = right - left < 1e-4
    middle = 0.5 * (left + right)
    return np.where(
        narrow, TAIL[distribution](middle) * (right - left), CDF[distribution](right) - CDF[distribution](left)
    )


def ideal_bits(distribution, bins, mean, scale, delta):
    low, high = (bins * delta - mean) / scale, ((bins + 1) * delta - mean) / scale
    return -np.log2(probability(distribution, low, high)).sum()


def drawn(generator, distribution, shape):
    return generator.normal(size=shape) if distribution == "gaussian" else generator.logistic(size=shape)


@pytest.mark.parametrize("spread", [False, True], ids=["one scale", "a scale each"])
@pytest.mark.parametrize(("log_scale", "log_delta"), SWEEP)
@pytest.mark.parametrize("distribution", CODECS)
def test_a_code_comes_back_and_is_as_long_as_the_bins_probability(distribution, log_scale, log_delta, spread):
    generator = np.random.default_rng(0)
    shape, delta = (5, 3000), 2.0**log_delta
    scale = np.full(shape, 2.0**log_scale)
    if spread:
        scale *= np.exp(generator.normal(size=shape))
    mean = 3.0 * generator.normal(size=shape)
    bins = discretize.bin_of(mean + scale * drawn(generator, distribution, shape), delta)
    codec = CODECS[distribution](mean, scale if spread else 2.0**log_scale, delta)
    message = rans.random(lanes=1000, words=50, seed=1)
    before, bits = state(message), message.bits()
    codec.push(message, bins)
    length = message.bits() - bits
    # Within the noise of 15,000 symbols; what the tables cost is held below, exactly.
    assert (length - ideal_bits(distribution, bins, mean, scale, delta)) / bins.size == pytest.approx(0.0, abs=5e-4)
    np.testing.assert_array_equal(codec.pop(message), bins)
    assert state(message) == before


@pytest.mark.parametrize(("log_scale", "log_delta"), SWEEP)
@pytest.mark.parametrize("distribution", CODECS)
def test_drawing_noise_is_undone_by_pushing_it(distribution, log_scale, log_delta):
    generator = np.random.default_rng(1)
    mean, scale, delta = generator.normal(size=4000), 2.0**log_scale, 2.0**log_delta
    codec = CODECS[distribution](mean, scale, delta, escape=False)
    message = rans.random(lanes=1500, words=30_000, seed=2)
    before = state(message)
    bins = codec.pop(message)
    drawn_z = (discretize.centre_of(bins, delta) - mean) / scale
    if delta < scale:
        spread = 1.0 if distribution == "gaussian" else np.pi / np.sqrt(3.0)
        assert np.std(drawn_z) == pytest.approx(np.hypot(spread, delta / scale / np.sqrt(12)), rel=0.05)
        assert np.mean(drawn_z) == pytest.approx(0.0, abs=5 * spread / np.sqrt(4000))
    codec.push(message, bins)
    assert state(message) == before


def own_masses(distribution, width, offset):
    """Of runs of a distribution with a scale of its own: their lower edges, length and masses, and where the mean is.

    All in bins.
    """
    table = masses.standard(distribution, escape=True)
    runs = any_scale._runs(table, np.array([offset]), np.asarray(width, np.float64), 1.0)
    length = 2.0 ** int(runs.bits)
    run = np.arange(-(count := int(25 * np.ceil(width) / length) + 3), count, dtype=np.float64)
    return run * length, length, any_scale._masses(table, runs, run)[1], offset


def common_masses(distribution, width, offset):
    """The same of the table for one scale, which moves the mean to the middle of a cell."""
    table = common_scale.runs(distribution, float(width), escape=True)
    cells_a_run = 2**table.cell_bits
    cell = 2.0**table.bits / cells_a_run
    first = int(np.floor(offset / cell)) - table.before
    begins = np.arange(-first % cells_a_run, table.escape, cells_a_run)
    return (first + begins) * cell, 2.0**table.bits, table.mass[begins], (first + table.before + 0.5) * cell


OWN = [(own_masses, width) for width in (0.125, 0.5, 1, 3, 10, 64, 127.9, 128, 180, 255, 256, 4096, 2.0**18, 2.0**32)]
COMMON = [(common_masses, width) for width in (1, 3, 10, 64, 127.9, 128, 180, 255, 256, 300, 4096, 1e5, 2.0**32)]


@pytest.mark.parametrize("offset", [0.0, 0.37])
@pytest.mark.parametrize(("made", "width"), OWN + COMMON)
@pytest.mark.parametrize("distribution", CODECS)
def test_masses_cost_under_25e_6_bits_over_the_ideal_and_what_moving_the_mean_does(distribution, made, width, offset):
    """Expected over the distribution itself, all bins summed; `width` is the standard deviation in bins."""
    offset *= max(width / 128, 1)  # anywhere in a run
    lower, length, mass, mean = made(distribution, width, offset)
    chance = probability(distribution, (lower - offset) / width, (lower + length - offset) / width)
    escape = masses.PRECISION - np.log2(masses.ESCAPE) + masses.INDEX_BITS
    cost = np.where(mass > 0, masses.PRECISION - np.log2(np.maximum(mass.astype(np.float64), 1.0)), escape)
    seen = chance > 0
    outside = 1.0 - chance.sum()
    excess = (chance[seen] * (cost[seen] + np.log2(chance[seen]))).sum() + escape * outside
    moved = (mean - offset) / width
    information = 1.0 if distribution == "gaussian" else 1.0 / 3.0  # Fisher's, of the mean
    assert -1e-12 < outside < 1e-7
    assert mass.sum() == masses.standard(distribution, escape=True).total
    assert -1e-12 < excess < 2.5e-5 + 0.5 * information * moved**2 / np.log(2)


@pytest.mark.parametrize("escape", [True, False])
@pytest.mark.parametrize("distribution", CODECS)
def test_no_run_of_one_scale_is_without_mass(distribution, escape):
    """Else noise that fell there could not be pushed."""
    for width in np.exp2(np.random.default_rng(0).uniform(0, 50, 60)):
        table = common_scale.runs(distribution, width, escape=escape)
        assert table.mass.min() >= 1
        assert table.start[0] == 0
        assert table.start[-1] + table.mass[-1] == 2**masses.PRECISION
        last = table.escape - 1
        assert table.start[last] + table.mass[last] == masses.standard(distribution, escape=escape).total
        ends = (table.start + table.mass)[: table.escape]
        np.testing.assert_array_equal(table.start[2**table.cell_bits : table.escape], ends[: -(2**table.cell_bits)])
        mass = table.mass[: table.escape]
        np.testing.assert_allclose(mass, mass[::-1], rtol=1e-3, atol=4 * 2**table.cell_bits)


def test_the_tables_are_these():
    """What is in files must never change, on any machine."""
    tables = [masses.standard(name, escape=escape) for name in CODECS for escape in (True, False)]
    assert [zlib.crc32(table.mass.astype("<i4").tobytes()) for table in tables] == PINNED
    runs = [common_scale.runs(name, width, escape=True) for name in CODECS for width in (300.0, 10.0, 1.0)]
    assert [zlib.crc32(table.mass.astype("<i4").tobytes()) for table in runs] == PINNED_RUNS
    assert all(table.mass.sum() == table.total and table.mass[:-1].min() >= masses.LEAST_CELL for table in tables)


@pytest.mark.parametrize(
    "scale", [np.array([1.0, 1.0, 1e3, 1e5, 1e-9, 1e-300, 2.0**40]), 200.0, 1.0, 1e-300], ids=["each", "fine", "1", "0"]
)
@pytest.mark.parametrize("lanes", [1, 7, 64])
def test_what_lies_outside_the_window_comes_back_too(lanes, scale):
    bins = np.array([0, 10**6, -(2**53) + 1, 2**53 - 1, 3, -5, 2**52], np.int64)
    codec = discretize.gaussian(np.zeros(7), scale, 0.5)
    message = rans.random(lanes=lanes, words=10, seed=3)
    before = state(message)
    codec.push(message, bins)
    np.testing.assert_array_equal(codec.pop(message), bins)
    assert state(message) == before


@pytest.mark.parametrize("scale", [1.0, np.ones(3)], ids=["one scale", "a scale each"])
def test_escapes_that_random_bits_hold_are_undone(scale):
    """Popped from the message with a chance of 2^-20, here by force: the bijection holds there too."""
    codec = discretize.gaussian(np.zeros(3), scale, 2.0**-20)
    message = rans.random(lanes=3, words=20, seed=4)
    message.heads |= np.uint64(2**masses.PRECISION - 1)
    before = state(message)
    bins = codec.pop(message)
    assert (np.abs(bins) > 2**24).all()
    codec.push(message, bins)
    assert state(message) == before


@pytest.mark.parametrize("scale", [np.ones(2), 1e3, 1.0, 1e-3], ids=["each", "narrow bins", "wide bins", "one bin"])
@pytest.mark.parametrize("bin_", [2**53, -(2**53) - 1, 2**56 + 1, -(2**63)])
def test_bins_that_float64_cannot_count_are_refused(bin_, scale):
    """Rather than wrapped round into the window."""
    with pytest.raises(ValueError, match=rf"bin {bin_} lies beyond 2\^53"):
        discretize.gaussian(np.zeros(2), scale, 1.0).push(rans.empty(lanes=2), np.array([0, bin_]))


@pytest.mark.parametrize("delta", [0.1, 0.001])
def test_noise_that_could_not_have_been_drawn_is_refused(delta):
    codec = discretize.gaussian(np.zeros(2), 1.0, delta, escape=False)
    message = rans.empty(lanes=2)
    with pytest.raises(ValueError, match="bin 50000 lies outside"):
        codec.push(message, np.array([0, 50_000]))


def test_a_wrong_guess_is_searched_for(monkeypatch):
    """The integers alone define the code: any first guess gives the same bins."""
    generator = np.random.default_rng(5)
    mean, scale = generator.normal(size=500), np.exp(3 * generator.normal(size=500))
    right = discretize.gaussian(mean, scale, 2.0**-8).pop(rans.random(lanes=500, words=2000, seed=6))
    guess = any_scale._guess

    def wrong(table, runs, wanted):
        return guess(table, runs, wanted) + generator.integers(-1000, 1000, len(wanted))

    monkeypatch.setattr(any_scale, "_guess", wrong)
    monkeypatch.setattr(any_scale, "_inverse", wrong)  # which mends guesses, and begins the search
    found = discretize.gaussian(mean, scale, 2.0**-8).pop(rans.random(lanes=500, words=2000, seed=6))
    np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("total", [1, 2, 256, 1000, 2**28, 2**28 + 1, 10**12, 2**32, 2**62])
def test_uniform_bins(total):
    generator = np.random.default_rng(7)
    symbols = generator.integers(total, size=(20, 50), dtype=np.int64)
    codec = discretize.uniform(total, (20, 50))
    message = rans.random(lanes=128, words=10_000, seed=8)
    before, bits = state(message), message.bits()
    codec.push(message, symbols)
    assert (message.bits() - bits) / 1000 == pytest.approx(np.log2(total), abs=1e-3)
    np.testing.assert_array_equal(codec.pop(message), symbols)
    assert state(message) == before
    noise = codec.pop(message)
    assert noise.min() >= 0
    assert noise.max() < total
    codec.push(message, noise)
    assert state(message) == before


@pytest.mark.parametrize("symbols", [np.array([-1]), np.array([10]), np.array([1.0]), np.array([1, 2]), [3]])
def test_symbols_that_do_not_fit_are_refused(symbols):
    with pytest.raises(ValueError, match="symbols"):
        discretize.uniform(10, (1,)).push(rans.empty(lanes=1), symbols)


BAD = {
    "no width": (0.0, 1.0, 0.0),
    "infinite width": (0.0, 1.0, np.inf),
    "no deviation": (0.0, 0.0, 1.0),
    "NaN deviation": (0.0, np.nan, 1.0),
    "infinite deviation": (0.0, np.inf, 1.0),
    "NaN mean": (np.nan, 1.0, 1.0),
    "infinite mean": (np.inf, 1.0, 1.0),
    "mean off the grid": (1e9, 1.0, 2.0**-40),
    "window off the grid": (0.0, 1e9, 2.0**-32),
    "mean at the end of the grid": ((2.0**53 - 1.0) * 1e10, 5e6, 1e10),
}


@pytest.mark.parametrize(("mean", "scale", "delta"), BAD.values(), ids=BAD.keys())
def test_bad_parameters_are_refused(mean, scale, delta):
    with pytest.raises(ValueError, match=r"delta|deviation|mean"):
        discretize.gaussian(np.array([mean]), scale, delta)


def test_bins_and_centres():
    values = np.array([-0.1, 0.0, 0.24, 0.25, 1.0])
    bins = discretize.bin_of(values, 0.25)
    assert bins.tolist() == [-1, 0, 0, 1, 4]
    assert discretize.centre_of(bins, 0.25).tolist() == [-0.125, 0.125, 0.125, 0.375, 1.125]
