"""Adversarial imitation on a probe: the policy learns what the expert does without seeing the task's reward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probe_environments import FOLLOW, expert_action, follow_demonstrations

from vdbjax.bottleneck import BottleneckConfig
from vdbjax.imitation import gail
from vdbjax.imitation.adversarial_step import DiscriminatorConfig
from vdbjax.networks import GaussianActor, Value
from vdbjax.rl.normalize import normalize, sample_moments
from vdbjax.rl.policy import Actor, make_policy
from vdbjax.rl.ppo import PPOConfig

DEMONSTRATIONS = follow_demonstrations().demonstrations
ITERATIONS = 400
LEARNER = PPOConfig(
    learning_rate=5e-3, num_epochs=4, rollout_length=8, minibatch_size=64, discount=0.5, hidden_sizes=(16,)
)
CRITIC = DiscriminatorConfig(hidden_sizes=(16,), learning_rate=3e-3, batch_size=64, updates=4)
POLICY = make_policy(GaussianActor((16,), 1, 0.6), FOLLOW, distribution="gaussian")

VARIANTS = {
    "gail": gail.Config(LEARNER, CRITIC),
    "vail": gail.Config(LEARNER, CRITIC, BottleneckConfig(latent_size=4, dual_step_size=0.02)),
}


def make(config, *, start_from=None, environment=FOLLOW):
    """The algorithm on the probe."""
    return gail.make(
        config,
        environment,
        POLICY,
        DEMONSTRATIONS,
        value_network=Value((16,)),
        num_envs=32,
        num_iterations=ITERATIONS,
        num_eval_episodes=2,
        start_from=start_from,
    )


def error(actor):
    """Mean squared distance of the mean action from the expert's, over the cues."""
    cue = np.linspace(-0.9, 0.9, 37)
    observation = jnp.float32(np.stack([cue, np.full_like(cue, np.cos(1.0))], axis=1))
    action = POLICY.bound(POLICY.mode(actor.params, normalize(actor.observations, observation)))
    return np.mean((np.asarray(action)[:, 0] - expert_action(cue)) ** 2)


@pytest.fixture(scope="module", params=VARIANTS)
def trained(request):
    """(state before, state after, metrics of all iterations)"""
    algorithm = make(VARIANTS[request.param])
    start = jax.jit(algorithm.init)(jax.random.key(0))
    run = jax.jit(lambda state: jax.lax.scan(algorithm.update, state, None, ITERATIONS))
    return start, *run(start)


def test_the_policy_does_what_the_expert_does(trained):
    start, state, _ = trained
    assert error(start.actor) > 0.7
    assert error(state.actor) < 0.25


def test_true_return_is_logged_and_the_policy_learns_from_the_critic(trained):
    """The task pays at most 1 a step; the reward learnt from is -log(1-D), about log 2 at the end."""
    _, state, metrics = trained
    assert int(state.step) == ITERATIONS
    assert float(metrics["episode/return"][-10:].mean()) > float(metrics["episode/return"][1]) + 1.0
    assert float(metrics["reward/mean"][-10:].mean()) == pytest.approx(np.log(2.0), abs=0.3)
    assert np.all(metrics["reward/mean"] > 0.0)
    assert all(np.all(np.isfinite(value)) for value in metrics.values())


def test_the_tasks_own_reward_teaches_nothing():
    """One update is the same, whatever the task pays."""

    @jax.jit
    def update(state, factor):
        def step(state, action, key):
            after, seen = FOLLOW.step(state, action, key)
            return after, seen._replace(reward=factor * seen.reward)

        return make(VARIANTS["gail"], environment=FOLLOW._replace(step=step)).update(state, None)

    start = jax.jit(make(VARIANTS["gail"]).init)(jax.random.key(0))
    (paid, true), (unpaid, false) = update(start, jnp.float32(1.0)), update(start, jnp.float32(-100.0))
    assert float(false["episode/return"]) == pytest.approx(-100.0 * float(true["episode/return"]), rel=1e-4)
    jax.tree.map(np.testing.assert_array_equal, (paid.agent, paid.discriminator), (unpaid.agent, unpaid.discriminator))


def test_it_starts_from_a_cloned_policy():
    params = jax.tree.map(lambda leaf: leaf + 1.0, POLICY.init(jax.random.key(7)))
    clone = Actor(params, sample_moments(5.0 + jax.random.normal(jax.random.key(8), (10, 2))))
    state = jax.jit(make(VARIANTS["gail"], start_from=clone).init)(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, state.actor, clone)


def test_what_the_policy_sees_is_normalised_by_the_demonstrations(trained):
    _, state, _ = trained
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        state.actor.observations,
        sample_moments(jnp.asarray(DEMONSTRATIONS.observation)),
    )
