"""Local bits-back coding of toy flows: exact both ways, and as long as their exact likelihood."""

import numpy as np
import pytest
from coded import state

from vdbjax.coding import layers, local_bits_back, plain, rans
from vdbjax.coding.discretize import bin_of, centre_of, uniform
from vdbjax.coding.layers import (
    Autoregressive,
    BlackBox,
    Coupling,
    DequantizedFlow,
    Elementwise,
    Flow,
    Rearrangement,
)
from vdbjax.coding.local_bits_back import Precision

PRECISION = Precision(sigma=2.0**-12, delta=2.0**-24)
HALF_LOG_2PI = 0.5 * np.log(2 * np.pi)


def sinh_arcsinh(skew: float, tail: float) -> Elementwise:
    """y = sinh(tail arcsinh(x) + skew), whose inverse and slope are known in closed form."""

    def forward(x):
        angle = tail * np.arcsinh(x) + skew
        return np.sinh(angle), np.log(tail) + np.log(np.cosh(angle)) - 0.5 * np.log1p(x**2)

    return Elementwise(forward, lambda y: np.sinh((np.arcsinh(y) - skew) / tail))


LOGIT = Elementwise(
    lambda x: (np.log(x) - np.log1p(-x), -np.log(x) - np.log1p(-x)),
    lambda y: np.clip(1.0 / (1.0 + np.exp(-y)), 1e-300, 1.0 - 2.0**-53),
    lambda x: 4.0 * x * (1.0 - x),
)


def latent_of(flow, x):
    """z = f(x) without noise, and the sum of the layers' log-determinants [batch], by their own formulas."""
    total = np.zeros(len(x))
    for layer in flow.layers:
        match layer:
            case Elementwise():
                x, log_slope = layer.forward(x)
                total += log_slope.reshape(len(x), -1).sum(1)
            case Coupling():
                kept, changed = layer.split(x)
                changed, log_slope = layer.forward(changed, layer.parameters(kept))
                total += log_slope.reshape(len(x), -1).sum(1)
                x = layer.join(kept, changed)
            case layers.Linear():
                x = np.einsum("...ij,b...j->b...i", layer.matrix, x) + layer.offset
                total += np.broadcast_to(np.linalg.slogdet(layer.matrix)[1], x.shape[1:-1]).sum()
            case Autoregressive():
                columns = [layer.forward(i, x) for i in range(x.shape[1])]
                x = np.stack([y for y, _ in columns], 1)
                total += sum(log_slope for _, log_slope in columns)
            case BlackBox():
                total += np.linalg.slogdet(layer.jacobian(x))[1]
                x = layer.forward(x)
            case Rearrangement():
                x = layer.forward(x)
    return x, total


def log_likelihood(flow, x):
    """log p(x) of each element of the batch, nats."""
    z, log_determinant = latent_of(flow, x)
    return (-0.5 * z**2 - HALF_LOG_2PI).reshape(len(x), -1).sum(1) + log_determinant


def sample(flow, generator, batch):
    """Data of the flow: its inverse at Gaussian noise."""
    x = generator.normal(size=(batch, *flow.latent_shape))
    for layer in reversed(flow.layers):
        match layer:
            case Coupling():
                kept, changed = layer.split(x)
                x = layer.join(kept, layer.inverse(changed, layer.parameters(kept)))
            case layers.Linear():
                x = np.einsum("...ij,b...j->b...i", layer.inverse, x - layer.offset)
            case Autoregressive():
                found = np.zeros_like(x)
                for i in range(x.shape[1]):
                    found[:, i] = layer.inverse(i, x[:, i], found)
                x = found
            case _:
                x = layer.inverse(x)
    return x


def coupling(generator, channels, hidden=16):
    """Even channels shift, scale and bend the odd ones, by a network of one hidden layer."""
    into, out = generator.normal(size=(channels // 2, hidden)), 0.2 * generator.normal(size=(hidden, channels))

    def parameters(kept):
        return np.split(np.tanh(kept @ into) @ out, 2, axis=-1)

    def forward(x, given):
        shift, log_scale = given
        y, bend = sinh_arcsinh(0.3, 0.8).forward(x)
        return y * np.exp(log_scale) + shift, bend + log_scale

    def inverse(y, given):
        shift, log_scale = given
        return sinh_arcsinh(0.3, 0.8).inverse((y - shift) * np.exp(-log_scale))

    def join(kept, changed):
        return np.stack([kept, changed], axis=-1).reshape(*kept.shape[:-1], -1)

    return Coupling(lambda x: (x[..., ::2], x[..., 1::2]), join, parameters, forward, inverse)


def linear(generator, *positions, channels):
    matrix = np.eye(channels) + 0.3 * generator.normal(size=(*positions, channels, channels))
    return layers.linear(matrix, generator.normal(size=(*positions, channels)))


def autoregressive(generator, dimensions):
    weight = np.tril(0.5 * generator.normal(size=(dimensions, dimensions)), -1)

    def given(i, x):
        log_scale = 0.5 * np.tanh(x @ weight[i])
        return x @ weight[i], log_scale

    def forward(i, x):
        shift, log_scale = given(i, x)
        y, bend = sinh_arcsinh(0.0, 1.3).forward(x[:, i])
        return y * np.exp(log_scale) + shift, bend + log_scale

    def inverse(i, y, x):
        shift, log_scale = given(i, x)
        return sinh_arcsinh(0.0, 1.3).inverse((y - shift) * np.exp(-log_scale))

    return Autoregressive(forward, inverse)


def black_box(generator, dimensions):
    """A matrix between two bends: no Jacobian of its parts is shown."""
    matrix = np.eye(dimensions) + 0.3 * generator.normal(size=(dimensions, dimensions))
    first, last = sinh_arcsinh(0.1, 0.9), sinh_arcsinh(-0.2, 1.1)

    def jacobian(x):
        y, inner = first.forward(x)
        _, outer = last.forward(y @ matrix.T)
        return np.exp(outer)[:, :, None] * matrix * np.exp(inner)[:, None, :]

    return BlackBox(
        lambda x: last.forward(first.forward(x)[0] @ matrix.T)[0],
        lambda y: first.inverse(last.inverse(y) @ np.linalg.inv(matrix).T),
        jacobian,
    )


def space_to_depth():
    def forward(x):
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
        return np.ascontiguousarray(x.reshape(batch, height // 2, width // 2, 4 * channels))

    def inverse(y):
        batch, height, width, channels = y.shape
        y = y.reshape(batch, height, width, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
        return np.ascontiguousarray(y.reshape(batch, 2 * height, 2 * width, channels // 4))

    return Rearrangement(forward, inverse)


def made(seed=0):
    generator = np.random.default_rng(seed)
    swap = Rearrangement(lambda x: x[..., ::-1].copy(), lambda x: x[..., ::-1].copy())
    return {
        "nothing": Flow([], (6,)),
        "elementwise": Flow([sinh_arcsinh(0.4, 0.7)], (2, 3)),
        "coupling": Flow([coupling(generator, 4)], (3, 4)),
        "linear": Flow([linear(generator, channels=5)], (2, 5)),
        "linear, by position": Flow([linear(generator, 2, 3, channels=4)], (2, 3, 4)),
        "autoregressive": Flow([autoregressive(generator, 5)], (5,)),
        "black box": Flow([black_box(generator, 5)], (5,)),
        "rearrangement": Flow([swap], (6,)),
        "composition": Flow(
            [
                sinh_arcsinh(-0.2, 1.2),
                space_to_depth(),
                linear(generator, 2, 2, channels=4),
                coupling(generator, 4),
                swap,
                coupling(generator, 4),
                linear(generator, channels=4),
                coupling(generator, 4),
            ],
            (2, 2, 4),
        ),
    }


FLOWS = made()


@pytest.mark.parametrize("name", FLOWS)
def test_data_come_back_and_cost_their_likelihood(name):
    flow = FLOWS[name]
    x = sample(flow, np.random.default_rng(1), batch=2000)
    bins = bin_of(x, PRECISION.delta)
    message = rans.random(lanes=1024, words=200_000, seed=2)
    before, bits = state(message), message.bits()
    local_bits_back.encode(message, flow, bins, PRECISION)
    net = message.bits() - bits
    exact = -log_likelihood(flow, centre_of(bins, PRECISION.delta)).sum() / np.log(2)
    exact -= bins.size * np.log2(PRECISION.delta)
    assert (net - exact) / bins.size == pytest.approx(0.0, abs=0.002)
    np.testing.assert_array_equal(local_bits_back.decode(message, flow, 2000, PRECISION), bins)
    assert state(message) == before


@pytest.mark.parametrize("name", FLOWS)
def test_drawing_data_from_a_flow_is_undone_by_encoding_them(name):
    """The sender decodes: how dequantisation noise is drawn."""
    flow = FLOWS[name]
    message = rans.random(lanes=256, words=100_000, seed=3)
    before = state(message)
    bins = local_bits_back.decode(message, flow, 300, PRECISION)
    local_bits_back.encode(message, flow, bins, PRECISION)
    assert state(message) == before


@pytest.mark.parametrize(
    ("sigma", "delta"), [(2.0**-14, 2.0**-32), (2.0**-12, 2.0**-20), (2.0**-6, 2.0**-12), (2.0**-8, 2.0**-6)]
)
def test_any_precision_comes_back(sigma, delta):
    """Also where the noise is lost between bins, and the length with it."""
    flow, precision = FLOWS["composition"], Precision(sigma, delta)
    bins = bin_of(sample(flow, np.random.default_rng(4), batch=100), delta)
    message = rans.random(lanes=256, words=30_000, seed=5)
    before = state(message)
    local_bits_back.encode(message, flow, bins, precision)
    np.testing.assert_array_equal(local_bits_back.decode(message, flow, 100, precision), bins)
    assert state(message) == before


def dequantizer(values):
    """Noise whose distribution depends on the integer."""
    shift = 0.1 * (values % 7).astype(np.float64)
    move = Elementwise(lambda x: (1.5 * (x + shift), np.full(x.shape, np.log(1.5))), lambda y: y / 1.5 - shift)
    return Flow([layers.fuse(LOGIT, move), linear(np.random.default_rng(6), channels=4)], (3, 4))


def pixels_flow():
    scale = Elementwise(lambda x: ((x - 128.0) / 60.0, np.full(x.shape, -np.log(60.0))), lambda y: 60.0 * y + 128.0)
    return Flow([scale, *made(7)["coupling"].layers], (3, 4))


@pytest.mark.parametrize("variational", [False, True], ids=["uniform", "variational"])
def test_integers_come_back_and_cost_the_bound_at_the_noise_drawn(variational):
    model = DequantizedFlow(pixels_flow(), dequantizer if variational else None)
    values = np.random.default_rng(8).integers(256, size=(2000, 3, 4))
    message = rans.random(lanes=1024, words=200_000, seed=9)
    before, bits = state(message), message.bits()

    # The very noise: drawn from a copy.
    copy = rans.Message(message.heads, message.words)
    per_unit = int(1 / PRECISION.delta)
    if variational:
        coding = local_bits_back._coding(PRECISION, sender_encodes=False)
        noise = local_bits_back._decode(copy, dequantizer(values), 2000, coding)
        entropy = log_likelihood(dequantizer(values), centre_of(noise, PRECISION.delta)).sum()
    else:
        noise, entropy = uniform(per_unit, values.shape).pop(copy), 0.0
    exact = entropy - log_likelihood(model.flow, centre_of(values * per_unit + noise, PRECISION.delta)).sum()

    local_bits_back.encode_integers(message, model, values, PRECISION)
    assert (message.bits() - bits - exact / np.log(2)) / values.size == pytest.approx(0.0, abs=0.002)
    np.testing.assert_array_equal(local_bits_back.decode_integers(message, model, 2000, PRECISION), values)
    assert state(message) == before


def test_a_file_pays_for_its_own_noise():
    """No random bits: images by the plain codec on few lanes, then by the flow on many, and one lane in the file."""
    first, model = np.random.default_rng(14).integers(256, size=(60, 16, 16, 3)), DequantizedFlow(pixels_flow(), None)
    values = np.random.default_rng(15).integers(256, size=(300, 3, 4))
    message = rans.empty(lanes=64)
    nothing = state(message)
    plain.plain(first.shape).push(message, first)
    rans.widen(message, 512)
    local_bits_back.encode_integers(message, model, values, PRECISION)
    rans.narrow(message, 1)
    data = rans.to_bytes(message)
    assert len(data) * 8 - message.bits() < 31 + 32  # one head

    message = rans.from_bytes(data, lanes=1)
    rans.widen(message, 512)
    np.testing.assert_array_equal(local_bits_back.decode_integers(message, model, 300, PRECISION), values)
    rans.narrow(message, 64)
    np.testing.assert_array_equal(plain.plain(first.shape).pop(message), first)
    assert state(message) == nothing


def test_noise_stays_inside_a_pixel_near_its_borders():
    """A dequantiser that puts most of its noise at 0 and 1, closer than sigma."""
    steep = Elementwise(lambda x: (0.05 * x, np.full(x.shape, np.log(0.05))), lambda y: 20.0 * y)
    model = DequantizedFlow(Flow([], (500,)), lambda _: Flow([layers.fuse(LOGIT, steep)], (500,)))
    values = np.random.default_rng(10).integers(4, size=(20, 500))
    message = rans.random(lanes=500, words=30_000, seed=11)
    before = state(message)
    local_bits_back.encode_integers(message, model, values, PRECISION)
    np.testing.assert_array_equal(local_bits_back.decode_integers(message, model, 20, PRECISION), values)
    assert state(message) == before


def test_fused_maps_are_the_maps():
    first, last = sinh_arcsinh(0.3, 0.8), sinh_arcsinh(-0.1, 1.4)
    fused, x = layers.fuse(first, last), np.linspace(-3, 3, 50)
    between, log_slope = first.forward(x)
    y, more = last.forward(between)
    np.testing.assert_allclose(fused.forward(x), (y, log_slope + more), rtol=1e-14)
    np.testing.assert_allclose(fused.inverse(y), x, rtol=1e-12)


def test_a_linear_layer_knows_its_inverse_and_its_covariance():
    layer = linear(np.random.default_rng(12), 2, 3, channels=4)
    covariance = layer.matrix @ np.swapaxes(layer.matrix, -1, -2)
    np.testing.assert_allclose(layer.factor @ np.swapaxes(layer.factor, -1, -2), covariance, rtol=1e-10, atol=1e-12)
    assert (np.diagonal(layer.factor, axis1=-2, axis2=-1) > 0).all()
    np.testing.assert_allclose(layer.matrix @ layer.inverse, np.broadcast_to(np.eye(4), (2, 3, 4, 4)), atol=1e-12)


def elementwise_that_gives(y, log_slope):
    return Flow([Elementwise(lambda x: (y, log_slope), lambda z: z)], (3,))


NOT_USABLE = {
    "float32": (np.zeros((2, 3), np.float32), np.zeros((2, 3))),
    "float32 log-slope": (np.zeros((2, 3)), np.zeros((2, 3), np.float32)),
    "another shape": (np.zeros((2, 1)), np.zeros((2, 3))),
    "log-slope summed": (np.zeros((2, 3)), np.zeros(2)),
    "no array": ([[0.0] * 3] * 2, np.zeros((2, 3))),
    "NaN": (np.full((2, 3), np.nan), np.zeros((2, 3))),
    "infinite log-slope": (np.zeros((2, 3)), np.full((2, 3), -np.inf)),
    "slope too large": (np.zeros((2, 3)), np.full((2, 3), 100.0)),
}


@pytest.mark.parametrize(("y", "log_slope"), NOT_USABLE.values(), ids=NOT_USABLE.keys())
def test_what_a_network_may_not_give_is_refused(y, log_slope):
    with pytest.raises(ValueError, match=r"of a layer|mean"):
        local_bits_back.encode(
            rans.random(lanes=6, words=100, seed=13),
            elementwise_that_gives(y, log_slope),
            np.zeros((2, 3), np.int64),
            PRECISION,
        )


def test_a_message_too_short_to_draw_from_is_refused():
    with pytest.raises(rans.EmptyMessageError):
        local_bits_back.encode(rans.empty(lanes=100), FLOWS["elementwise"], np.zeros((50, 2, 3), np.int64), PRECISION)


def test_a_matrix_without_inverse_is_refused():
    with pytest.raises(ValueError, match="no inverse"):
        layers.linear(np.zeros((3, 3)), np.zeros(3))


def test_layers_must_end_in_the_latent_shape():
    flow = FLOWS["composition"]._replace(latent_shape=(4, 4))
    bins = bin_of(sample(FLOWS["composition"], np.random.default_rng(4), batch=5), PRECISION.delta)
    with pytest.raises(ValueError, match="latent_shape"):
        local_bits_back.encode(rans.random(lanes=9, words=9_000, seed=1), flow, bins, PRECISION)


@pytest.mark.parametrize("delta", [0.3, 2.0**-50, 0.0, np.nan])
def test_a_pixel_must_be_a_whole_number_of_bins(delta):
    model = DequantizedFlow(pixels_flow(), None)
    with pytest.raises(ValueError, match="delta"):
        local_bits_back.encode_integers(
            rans.empty(lanes=1), model, np.zeros((1, 3, 4), np.int64), Precision(2.0**-12, delta)
        )
