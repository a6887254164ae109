"""PPO: its loss by hand, its batches, and probe environments whose answers are known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probe_environments import CONSTANT, DELAYED, HARD_END, MATCH, SIGN, TIME_LIMIT

from vdbjax.networks import GaussianActor, Value
from vdbjax.rl import reinforcement
from vdbjax.rl.normalize import normalize
from vdbjax.rl.policy import make_policy
from vdbjax.rl.ppo import Minibatch, PPOConfig, plan_batch, ppo_loss, surrogate_loss

CLIPPED = {
    # ratio, advantage: the loss, and its slope in the ratio, which is 0 where going on would leave the interval
    "unchanged": (1.0, 2.0, -2.0, -2.0),
    "better and far": (1.5, 2.0, -2.4, 0.0),
    "better, fallen behind": (0.5, 2.0, -1.0, -2.0),
    "worse and far": (0.5, -2.0, 1.6, 0.0),
    "worse, run ahead": (1.5, -2.0, 3.0, 2.0),
}


@pytest.mark.parametrize("case", CLIPPED)
def test_surrogate_by_hand(case):
    ratio, advantage, loss, slope = CLIPPED[case]
    function = lambda r: surrogate_loss(r, jnp.array([advantage]), clip=0.2)  # noqa: E731
    value, gradient = jax.value_and_grad(function)(jnp.array([ratio]))
    assert float(value) == pytest.approx(loss)
    assert float(gradient[0]) == pytest.approx(slope)


def test_surrogate_is_the_mean():
    ratio, advantage, losses, _ = np.array(list(CLIPPED.values())).T
    assert float(surrogate_loss(jnp.float32(ratio), jnp.float32(advantage), clip=0.2)) == pytest.approx(np.mean(losses))


def make_networks(environment, config):
    """(policy, value network)"""
    actor = GaussianActor(config.hidden_sizes, environment.action_size, config.initial_std)
    return make_policy(actor, environment, distribution=config.distribution), Value(config.hidden_sizes)


def test_the_whole_loss_by_hand():
    config = PPOConfig(hidden_sizes=(4,), entropy_weight=0.3, value_weight=0.7, clip=0.1)
    policy, value_network = make_networks(MATCH, config)
    params = policy.init(jax.random.key(0)), value_network.init(jax.random.key(1), jnp.zeros(1))
    observation, action = jax.random.normal(jax.random.key(2), (2, 10, 1))
    old, advantage, target = jax.random.normal(jax.random.key(3), (3, 10))
    old = policy.log_prob(params[0], observation, action) + 0.2 * old
    batch = Minibatch(observation, action, old, advantage, target)
    given = {"policy": policy, "value_network": value_network, "config": config, "entropy_weight": 0.3}
    loss, metrics = jax.jit(partial(ppo_loss, **given))(params, batch, jax.random.key(4))
    log_ratio = np.float64(policy.log_prob(params[0], observation, action)) - np.float64(old)
    advantage, target = np.float64(advantage), np.float64(target)
    ratio, scaled = np.exp(log_ratio), (advantage - np.mean(advantage)) / np.std(advantage)
    surrogate = np.mean(np.minimum(ratio * scaled, np.clip(ratio, 0.9, 1.1) * scaled))
    error = np.mean((np.float64(value_network.apply(params[1], observation)) - target) ** 2)
    entropy = np.log(0.6 * np.sqrt(2 * np.pi * np.e))
    assert float(loss) == pytest.approx(-surrogate + 0.7 * error - 0.3 * entropy, rel=1e-4)
    assert float(metrics["policy/clip_fraction"]) == pytest.approx(np.mean(np.abs(ratio - 1) > 0.1))
    assert float(metrics["policy/kl_nats"]) == pytest.approx(np.mean(ratio - 1 - log_ratio), rel=1e-2)


PLANS = {
    # num_envs, rollout_length, minibatch_size: steps of each environment, minibatches
    "a laptop": (32, None, None, 64, 16),
    "one environment": (1, None, None, 2048, 16),
    "an accelerator": (4096, None, None, 16, 64),
    "an odd number": (97, None, None, 21, 7),
    "own numbers": (6, 10, 20, 10, 3),
}


@pytest.mark.parametrize("plan", PLANS)
def test_a_rollout_is_cut_as_planned(plan):
    num_envs, length, size, *expected = PLANS[plan]
    assert list(plan_batch(PPOConfig(rollout_length=length, minibatch_size=size), num_envs)) == expected


def test_a_rollout_that_cannot_be_cut_is_refused_with_both_numbers():
    config = PPOConfig(rollout_length=25, minibatch_size=64)
    with pytest.raises(ValueError, match=r"\(4 x 25 = 100\) must be divisible by minibatch_size \(64\)"):
        plan_batch(config, 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("clip", -0.1),
        ("initial_std", float("nan")),
        ("final_std", 0.0),
        ("discount", 1.5),
        ("gae_lambda", -0.1),
        ("num_epochs", 0),
        ("minibatch_size", 0),
        ("rollout_length", -3),
    ],
)
def test_values_that_cannot_work_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name} \({value}\)"):
        PPOConfig(**{name: value})


# Each: the environment, lambda, and what the value function must say (in the reward's own units) to what is seen.
GAMMA = 0.8
PROBES = {
    "depends on what is seen": (SIGN, 0.95, {-1.0: -1.0, 1.0: 1.0}),
    "carries rewards back": (DELAYED, 0.95, {0.0: GAMMA, 1.0: 1.0}),
    "bootstraps at a time limit": (TIME_LIMIT, 0.95, {0.0: 1 / (1 - GAMMA)}),
    "does not at a true end": (HARD_END, 1.0, {0.0: 1 + GAMMA / 2}),  # the mean of both steps
}


def train(environment, gae_lambda, *, iterations=150, final_std=None):
    """(the learner's state, its value of raw observations) after a short run."""
    config = PPOConfig(
        learning_rate=1e-2,
        num_epochs=4,
        rollout_length=8,
        minibatch_size=64,
        discount=GAMMA,
        gae_lambda=gae_lambda,
        hidden_sizes=(16,),
        final_std=final_std,
    )
    policy, value_network = make_networks(environment, config)
    algorithm = reinforcement.make(
        reinforcement.Config(config),
        environment,
        policy,
        value_network=value_network,
        num_envs=32,
        num_iterations=iterations,
        num_eval_episodes=2,
    )

    @jax.jit
    def run(key):
        return jax.lax.scan(algorithm.update, algorithm.init(key), None, iterations)

    state, metrics = run(jax.random.key(0))
    assert all(np.all(np.isfinite(value)) for value in metrics.values())
    see = lambda x: normalize(state.actor.observations, jnp.float32(x)[:, None])  # noqa: E731
    return (
        state.agent,
        lambda x: value_network.apply(state.agent.value, see(x)),
        lambda x: policy.mode(state.actor.params, see(x)),
    )


@pytest.mark.parametrize("skill", PROBES)
def test_the_value_function(skill):
    environment, gae_lambda, answers = PROBES[skill]
    agent, value, _ = train(environment, gae_lambda)
    found = np.asarray(value(list(answers))) * float(agent.reward_scale)
    np.testing.assert_allclose(found, list(answers.values()), atol=0.06 * max(map(abs, answers.values())))


def test_the_value_function_learns_a_constant():
    """A reward that never varies has no scale; it is clipped at 10, and learnt as that."""
    _, value, _ = train(CONSTANT, 0.95)
    np.testing.assert_allclose(value([0.0]), 10.0, rtol=0.02)


@pytest.mark.parametrize("final_std", [None, 0.1])
def test_the_policy_learns_the_action(final_std):
    agent, _, mode = train(MATCH, 0.95, final_std=final_std)
    seen = np.linspace(-0.9, 0.9, 19)
    assert np.mean((np.asarray(mode(seen))[:, 0] - 0.7 * seen) ** 2) < 0.005  # a policy that does 0 has 0.15
    if final_std:
        np.testing.assert_allclose(np.exp(agent.actor.params["params"]["log_std"]), final_std, rtol=1e-5)
