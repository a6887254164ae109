"""The one test of all bijections: log-determinants against autodiff's Jacobian, and round trips in both precisions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdbjax.flows.bijection import Chain, Condition
from vdbjax.flows.conditioner import Conditioner
from vdbjax.flows.coupling import Coupling, Pointwise, space_to_depth, split_into_halves
from vdbjax.flows.elementwise import (
    Actnorm,
    Mixture,
    affine,
    mixture_logit,
    mixture_logit_inverse,
    mixture_of_logistics,
    scaled_logit,
    sigmoid,
)

IMAGE, HALVES = (4, 4, 2), (2, 4, 2, 2)
FEATURES = Condition(jax.random.normal(jax.random.key(9), (3, 4, 2, 5), jnp.float32))


def conditioner(transform, *, heads=2, weight_norm=False, last_nonlinearity=False):
    return Conditioner(
        transform.num_parameters,
        filters=4,
        blocks=1,
        heads=heads,
        weight_norm=weight_norm,
        last_nonlinearity=last_nonlinearity,
    )


def coupling(kept, transform, **changes):
    return Coupling(kept, conditioner(transform, **changes), transform)


class Case(NamedTuple):
    bijection: Any
    shape: tuple[int, ...]
    condition: Condition = Condition()
    in_unit_interval: bool = False


MIXTURE = mixture_of_logistics(3)
EVERYTHING = {"heads": 0, "weight_norm": True, "last_nonlinearity": True}

BIJECTIONS = {
    "sigmoid": Case(sigmoid(), (4,)),
    "scaled logit": Case(scaled_logit(slope=0.9, offset=0.05), (4,), in_unit_interval=True),
    "actnorm": Case(Actnorm(), (3, 2)),
    "pointwise": Case(Pointwise(), HALVES),
    "columns": Case(split_into_halves("columns"), IMAGE),
    "channels": Case(split_into_halves("channels"), IMAGE),
    "space to depth": Case(space_to_depth(), IMAGE),
    "mixture coupling": Case(coupling(0, MIXTURE), HALVES),
    "mixture coupling, other half": Case(coupling(1, MIXTURE, **EVERYTHING), HALVES, FEATURES),
    "chain": Case(Chain((split_into_halves("columns"), Actnorm(), Pointwise(), coupling(0, affine()))), IMAGE),
}


class Found(NamedTuple):
    """What a bijection made of a batch."""

    case: Case
    params: Any  # the first ones moved, so that none is special
    x: Any
    first_y: Any  # by `init`, and by `forward` with the first parameters
    first_y_again: Any
    y: Any
    log_det: Any
    log_dets: Any  # of the first of the batch alone, as told and by the Jacobian
    x_again: Any


def there_and_back(case):
    """One compiled function: the networks' float32 is not rounded in two ways, which the inverse would not undo."""

    def both(params, x, condition):
        y, log_det = case.bijection.forward(params, x, condition)
        return y, log_det, case.bijection.inverse(params, y, condition)

    return jax.jit(both)


@pytest.fixture(params=BIJECTIONS, scope="module")
def found(request):
    """In float64."""
    case = BIJECTIONS[request.param]
    both = there_and_back(case)
    alone = case.condition._replace(features=None if case.condition.features is None else case.condition.features[:1])

    @jax.jit
    def log_dets(params, x):
        """As told and by the Jacobian: of one program, so that both see the networks' float32 rounded alike."""

        def forward(x):
            y, log_det = case.bijection.forward(params, x[None], alone)
            return y.ravel(), log_det[0]

        jacobian, log_det = jax.jacfwd(forward, has_aux=True)(x)
        return log_det, jnp.linalg.slogdet(jacobian.reshape(x.size, x.size))[1]

    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(3, *case.shape)))
        x = jax.nn.sigmoid(x) if case.in_unit_interval else x
        first, first_y = jax.jit(lambda x: case.bijection.init(jax.random.key(0), x, case.condition))(x)
        leaves, structure = jax.tree.flatten(first)
        draw = np.random.default_rng(1)
        moved = [leaf + draw.normal(0.0, 0.1, leaf.shape).astype(np.float32) for leaf in leaves]
        params = jax.tree.unflatten(structure, moved)
        first_y_again, _, _ = both(first, x, case.condition)
        y, log_det, x_again = both(params, x, case.condition)
        return Found(case, params, x, first_y, first_y_again, y, log_det, log_dets(params, x[0]), x_again)


def test_the_first_output_is_that_of_the_first_parameters(found):
    np.testing.assert_allclose(found.first_y_again, found.first_y, rtol=1e-4, atol=1e-4)


def test_the_log_determinant_is_that_of_the_jacobian(found):
    told, by_jacobian = found.log_dets
    assert told.dtype == found.log_det.dtype == jnp.float64
    np.testing.assert_allclose(told, by_jacobian, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(found.log_det[0], told, rtol=1e-5, atol=1e-5)  # the networks' float32


def test_the_inverse_undoes_in_float64(found):
    assert found.y.dtype == found.x_again.dtype == jnp.float64
    np.testing.assert_allclose(found.x_again, found.x, rtol=0, atol=1e-10)


def test_the_inverse_undoes_in_float32(found):
    x = jnp.asarray(np.asarray(found.x), jnp.float32)
    params = jax.tree.map(np.asarray, found.params)
    y, _, x_again = there_and_back(found.case)(params, x, found.case.condition)
    assert y.dtype == x_again.dtype == jnp.float32
    np.testing.assert_allclose(x_again, x, rtol=0, atol=1e-5)


def test_rearrangements_move_numpy_integers_alike():
    x = np.arange(64).reshape(2, 4, 4, 2)
    for name in ("columns", "channels", "space to depth"):
        moved = BIJECTIONS[name].bijection.move(x)
        assert moved.dtype == x.dtype
        np.testing.assert_array_equal(BIJECTIONS[name].bijection.move_back(moved), x)
    halves = split_into_halves("columns").move(x)
    np.testing.assert_array_equal(halves[:, 1], x[:, :, 1::2])
    kept, changed = BIJECTIONS["mixture coupling, other half"].bijection.split(halves)
    np.testing.assert_array_equal(kept, halves[:, 1])
    np.testing.assert_array_equal(BIJECTIONS["mixture coupling, other half"].bijection.join(kept, changed), halves)


def test_actnorm_leaves_the_first_batch_standardised():
    x = jnp.asarray(np.random.default_rng(0).normal(3.0, 5.0, size=(50, 2, 3)), jnp.float32)
    _, y = Actnorm().init(jax.random.key(0), x, Condition())
    np.testing.assert_allclose(jnp.mean(y, 0), 0.0, atol=1e-5)
    np.testing.assert_allclose(jnp.std(y, 0), 1.0, rtol=1e-4)


def hard_mixtures(count):
    """Far apart components of very different widths, on which Newton's method alone cycles."""
    draw = np.random.default_rng(0)
    log_weights = jax.nn.log_softmax(jnp.asarray(draw.normal(size=(count, 4))))
    means, log_scales = draw.normal(0.0, 3.0, size=(count, 4)), draw.uniform(-7.0, 1.0, size=(count, 4))
    return Mixture(log_weights, jnp.asarray(means), jnp.asarray(log_scales)), jnp.asarray(draw.normal(0, 2, size=count))


def test_the_mixture_is_that_of_scipy():
    from scipy.special import logit
    from scipy.stats import logistic

    with jax.enable_x64(True):
        mixture, x = hard_mixtures(500)
        weights, scales = np.exp(mixture.log_weights), np.exp(mixture.log_scales)
        cdf = np.sum(weights * logistic.cdf(x[:, None], mixture.means, scales), axis=1)
        density = np.sum(weights * logistic.pdf(x[:, None], mixture.means, scales), axis=1)
        found, log_slope = mixture_logit(x, mixture)
        moderate = (cdf > 1e-6) & (cdf < 1 - 1e-6)
        np.testing.assert_allclose(found[moderate], logit(cdf)[moderate], rtol=1e-8, atol=1e-8)
        cdf, density = cdf[moderate], density[moderate]
        expected = np.log(density) - np.log(cdf) - np.log1p(-cdf)
        np.testing.assert_allclose(log_slope[moderate], expected, rtol=1e-8, atol=1e-8)


def test_the_inverse_of_hard_mixtures_has_converged_everywhere():
    with jax.enable_x64(True):
        mixture, y = hard_mixtures(20_000)
        x = jax.jit(mixture_logit_inverse)(3 * y, mixture)
        found, log_slope = mixture_logit(x, mixture)
        error = np.abs(found - 3 * y) * np.exp(-log_slope)  # in x
        assert np.max(error) < 1e-10


def test_an_inverse_does_not_depend_on_its_neighbours():
    with jax.enable_x64(True):
        mixture, y = hard_mixtures(64)
        invert = jax.jit(mixture_logit_inverse)
        order = np.random.default_rng(1).permutation(64)
        shuffled = invert(y[order], Mixture(*(leaf[order] for leaf in mixture)))
        np.testing.assert_array_equal(shuffled, invert(y, mixture)[order])
