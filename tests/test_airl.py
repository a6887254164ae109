"""AIRL and VAIRL: the true reward of a tabular task is recovered, and the pieces of the objective by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probe_environments import FOLLOW, follow_demonstrations

from vdbjax.bottleneck import BottleneckConfig, kl_to_standard_normal
from vdbjax.imitation import airl
from vdbjax.imitation.airl_discriminator import DiscriminatorConfig, Rows, make_discriminator
from vdbjax.networks import Critic, GaussianActor, Value
from vdbjax.rl.policy import make_policy
from vdbjax.rl.ppo import PPOConfig

STATES, GAMMA = 5, 0.9
TRUE_REWARD = np.array([0.3, -0.5, 1.0, 0.2, -1.0])
SUCCESSOR = np.array([[(s + 1) % STATES, (2 * s + 1) % STATES, s] for s in range(STATES)])  # [state, action]


def soft_optimal(reward):
    """log pi(a|s) of the maximum entropy policy, by soft value iteration."""
    value = np.zeros(STATES)
    for _ in range(500):
        worth = reward[:, None] + GAMMA * value[SUCCESSOR]
        value = np.log(np.exp(worth).sum(axis=1))
    return worth - value[:, None]


def every_pair(log_pi):
    """All transitions, each as often as the other: what a policy with these probabilities is seen to do."""
    state, action = np.array(list(itertools.product(range(STATES), range(3)))).T
    one_hot = np.eye(STATES, dtype=np.float32)
    seen = Rows(
        one_hot[state], action[:, None].astype(np.float32), one_hot[SUCCESSOR[state, action]], log_pi[state, action]
    )
    return jax.tree.map(jnp.float32, seen), state, action


def fit(rows, real_weight, fake_weight, *, updates=3000, seed=0):
    """A discriminator with linear g and h over one-hot states, trained on rows drawn with these weights."""
    config = DiscriminatorConfig(hidden_sizes=(), learning_rate=1e-2, batch_size=64, updates=updates)
    made = make_discriminator(config, None, observation_size=STATES, action_size=1, discount=GAMMA, num_updates=updates)
    key_init, key_real, key_fake, key = jax.random.split(jax.random.key(seed), 4)

    def drawn(key, weight):
        chosen = jax.random.choice(key, len(weight), (updates, 64), p=jnp.float32(weight / weight.sum()))
        return jax.tree.map(lambda leaf: leaf[chosen], rows)

    state, _ = jax.jit(made.step)(made.init(key_init), drawn(key_real, real_weight), drawn(key_fake, fake_weight), key)
    return made, state.params


def test_at_the_optimum_g_is_the_true_reward_up_to_a_constant():
    """There the policy is the expert and D is 1/2 everywhere, so that f = log pi; only g can carry the reward.

    The successors of any state differ, so h is identified, and g with it (Fu et al. 2018, theorem 5.1).
    """
    log_pi = soft_optimal(TRUE_REWARD)
    rows, state, action = every_pair(log_pi)
    weight = np.exp(log_pi[state, action])  # states evenly, actions as the policy takes them
    made, params = fit(rows, weight, weight)
    np.testing.assert_allclose(jax.jit(made.shaped)(params, rows), log_pi[state, action], atol=0.1)
    one_hot = jnp.eye(STATES)
    found = np.asarray(made.reward(params, one_hot, jnp.zeros((STATES, 1))))
    np.testing.assert_allclose(found - found.mean(), TRUE_REWARD - TRUE_REWARD.mean(), atol=0.1)


BOTTLENECK = BottleneckConfig(latent_size=3, info_constraint=0.2, beta_init=0.5, dual_step_size=0.01)


def small(**changes):
    config = DiscriminatorConfig(hidden_sizes=(4,), updates=1, batch_size=6, **changes)
    return make_discriminator(config, BOTTLENECK, observation_size=2, action_size=1, discount=GAMMA, num_updates=100)


def some_rows(key, *lead):
    keys = jax.random.split(key, 4)
    return Rows(*(jax.random.normal(k, (*lead, n)) for k, n in zip(keys, (2, 1, 2))), jax.random.normal(keys[3], lead))


def test_the_reward_is_shaped_as_the_paper_says():
    made = small()
    params, rows = made.init(jax.random.key(0)).params, some_rows(jax.random.key(1), 7)
    reward = jax.jit(made.reward)
    potential = lambda observation: reward({"g": params["h"]}, observation, rows.action)  # noqa: E731
    expected = reward({"g": params["g"]}, rows.observation, rows.action)
    expected += GAMMA * potential(rows.next_observation) - potential(rows.observation)
    np.testing.assert_allclose(jax.jit(made.shaped)(params, rows), expected, rtol=1e-5, atol=1e-6)


def test_a_reward_of_the_state_does_not_see_the_action():
    made = {inputs: small(inputs=inputs) for inputs in ("state", "state-action")}
    for inputs, discriminator in made.items():
        params = discriminator.init(jax.random.key(0)).params
        rewards = [discriminator.reward(params, jnp.ones((1, 2)), jnp.full((1, 1), a)) for a in (-1.0, 1.0)]
        assert np.array_equal(*rewards) == (inputs == "state")


def test_the_kl_is_the_sum_over_three_codes_and_beta_follows_it():
    """Where all encoders are alike in distribution, three times that of one."""
    made = small()
    state = made.init(jax.random.key(0))
    state = state._replace(params=jax.tree.map(lambda leaf: leaf + 0.3, state.params))
    state = state._replace(params={"g": state.params["g"], "h": state.params["g"]})
    seen = jnp.ones((1, 6, 2))
    rows = Rows(seen, jnp.zeros((1, 6, 1)), seen, jnp.zeros((1, 6)))
    after, metrics = jax.jit(made.step)(state, rows, rows, jax.random.key(3))
    code = Critic((4,), 3, "relu").apply(state.params["g"], jnp.ones((1, 2)), method="encode")
    one = float(kl_to_standard_normal(*code)[0])
    assert float(metrics["bottleneck/kl_nats"]) == pytest.approx(3 * one, rel=1e-4)
    assert float(after.dual.beta) == pytest.approx(0.5 + 0.01 * (3 * one - 0.2), rel=1e-4)


def test_the_penalty_is_half_the_squared_slope_of_f_on_the_experts_samples():
    """With codes as good as certain, the slope of f at the mean."""
    config = DiscriminatorConfig(hidden_sizes=(4,), updates=1, batch_size=6, gradient_penalty=0.1, activation="tanh")
    made = make_discriminator(config, None, observation_size=2, action_size=1, discount=GAMMA, num_updates=100)
    state = made.init(jax.random.key(0))
    state = state._replace(params=jax.tree.map(lambda leaf: leaf + 0.3, state.params))
    real, fake = some_rows(jax.random.key(1), 1, 6), some_rows(jax.random.key(2), 1, 6)
    _, metrics = jax.jit(made.step)(state, real, fake, jax.random.key(3))

    def f(now, later):
        return made.shaped(state.params, Rows(now[None], jnp.zeros((1, 1)), later[None], jnp.zeros(1)))[0]

    slopes = jax.jit(jax.vmap(jax.grad(f, argnums=(0, 1))))(real.observation[0], real.next_observation[0])
    expected = 0.5 * np.mean(sum(np.sum(np.square(slope), axis=1) for slope in slopes))
    assert float(metrics["discriminator/gradient_penalty"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("anneal", [True, False])
def test_an_annealed_discriminator_stands_still_after_its_last_update(anneal):
    made = small(anneal=anneal)
    rows = [some_rows(jax.random.key(i), 100, 6) for i in range(2)]
    start = made.init(jax.random.key(0))
    done, _ = jax.jit(made.step)(start, *rows, jax.random.key(3))
    after, _ = jax.jit(made.step)(done, *rows, jax.random.key(4))
    same = lambda a, b: [np.array_equal(*leaves) for leaves in zip(*map(jax.tree.leaves, (a.params, b.params)))]  # noqa: E731
    assert not any(same(start, done))
    assert all(same(done, after)) == anneal


@pytest.mark.parametrize(("averaged", "weights"), [(1, [0, 0, 0, 1]), (3, [2, 2, 2, 3]), (9, [1, 1, 1, 1])])
def test_the_reward_that_is_kept_is_a_mean_over_the_last_iterations(averaged, weights):
    """The mean of all until there are as many; then the new one's share is one in so many, at 3: 1/3, 2/9, 2/9, 2/9."""
    critic = DiscriminatorConfig(hidden_sizes=(4,), learning_rate=1e-2, updates=2, averaged_iterations=averaged)
    algorithm = airl.make(
        airl.Config(PPOConfig(rollout_length=4, minibatch_size=8, num_epochs=1, hidden_sizes=(4,)), critic),
        FOLLOW,
        make_policy(GaussianActor((4,), 1, 0.6), FOLLOW, distribution="gaussian"),
        follow_demonstrations().demonstrations,
        value_network=Value((4,)),
        num_envs=2,
        num_iterations=4,
        num_eval_episodes=1,
    )

    def update(state, _):
        state, _ = algorithm.update(state, None)
        return state, state.discriminator.params

    state, seen = jax.jit(lambda key: jax.lax.scan(update, algorithm.init(key), None, 4))(jax.random.key(0))
    expected = jax.tree.map(lambda leaf: np.average(leaf, axis=0, weights=weights), seen)
    jax.tree.map(
        lambda found, wanted: np.testing.assert_allclose(found, wanted, atol=1e-6), state.learnt_reward, expected
    )


@pytest.mark.parametrize(
    ("name", "value"), [("updates", 0), ("batch_size", 0), ("averaged_iterations", 0), ("gradient_penalty", -1.0)]
)
def test_values_that_cannot_work_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name} \({value}\)"):
        DiscriminatorConfig(**{name: value})
