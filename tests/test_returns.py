"""Returns and advantages against plain Python loops, and against hand arithmetic at the end of an episode."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from vdbjax.rl.returns import discounted_returns, generalized_advantages, running_returns

DISCOUNT = 0.9


def random_rollout(seed, *, time=40, num_envs=6):
    """Rewards, values and endings of every kind; the last row has a termination, a truncation and neither."""
    generator = np.random.default_rng(seed)
    reward, value, next_value = generator.standard_normal((3, time, num_envs))
    ending = generator.choice(3, (time, num_envs), p=[0.7, 0.15, 0.15])
    ending[-1, :3] = [0, 1, 2]
    return reward, value, next_value, ending == 1, ending == 2


def loop_advantages(reward, value, next_value, terminated, truncated, *, discount, gae_lambda):
    """A_t = sum over l of (gamma lambda)^l delta_{t+l}, up to and with the step that ends the episode."""
    time, num_envs = reward.shape
    advantage = np.zeros_like(reward)
    for env in range(num_envs):
        for start in range(time):
            factor = 1.0
            for t in range(start, time):
                future = 0.0 if terminated[t, env] else next_value[t, env]
                advantage[start, env] += factor * (reward[t, env] + discount * future - value[t, env])
                if terminated[t, env] or truncated[t, env]:
                    break
                factor *= discount * gae_lambda
    return advantage


def loop_returns(reward, next_value, terminated, truncated, *, discount):
    """R_t = r_t + gamma r_{t+1} + ... + gamma^k V, the last term where the episode was cut but not over."""
    time, num_envs = reward.shape
    returns = np.zeros_like(reward)
    for env in range(num_envs):
        for start in range(time):
            factor = 1.0
            for t in range(start, time):
                returns[start, env] += factor * reward[t, env]
                factor *= discount
                if terminated[t, env]:
                    break
                if truncated[t, env] or t == time - 1:
                    returns[start, env] += factor * next_value[t, env]
                    break
    return returns


@pytest.mark.parametrize("gae_lambda", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_advantages_are_the_double_sum(seed, gae_lambda):
    rollout = random_rollout(seed)
    knobs = {"discount": DISCOUNT, "gae_lambda": gae_lambda}
    advantage = generalized_advantages(*map(jnp.asarray, rollout), **knobs)
    np.testing.assert_allclose(advantage, loop_advantages(*rollout, **knobs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("discount", [0.0, DISCOUNT, 1.0])
def test_discounted_returns_are_the_sum(discount):
    reward, _, next_value, terminated, truncated = random_rollout(2)
    rollout = reward, next_value, terminated, truncated
    returns = discounted_returns(*map(jnp.asarray, rollout), discount=discount)
    np.testing.assert_allclose(returns, loop_returns(*rollout, discount=discount), rtol=1e-4, atol=1e-5)


def test_the_return_is_the_advantage_at_lambda_one_plus_the_value():
    reward, value, next_value, terminated, truncated = random_rollout(3)
    goes_on = ~(terminated | truncated)[:-1]
    next_value[:-1] = np.where(goes_on, value[1:], next_value[:-1])  # one value function gave both
    reward, value, next_value, terminated, truncated = map(
        jnp.asarray, (reward, value, next_value, terminated, truncated)
    )
    returns = discounted_returns(reward, next_value, terminated, truncated, discount=DISCOUNT)
    advantage = generalized_advantages(
        reward, value, next_value, terminated, truncated, discount=DISCOUNT, gae_lambda=1.0
    )
    np.testing.assert_allclose(returns, advantage + value, rtol=1e-4, atol=1e-5)


ENDINGS = {
    # What comes after the first of two steps. Its reward is 1 and its value 3; its true successor is worth 10, and the
    # step after it, perhaps of another episode, has the advantage 2 + 0.5 * 6 - 4 = 1.
    "goes on": (False, False, 1.0 + 0.5 * 10.0 - 3.0 + 0.25 * 1.0),
    "truncated": (False, True, 1.0 + 0.5 * 10.0 - 3.0),
    "terminated": (True, False, 1.0 - 3.0),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_time_limit_bootstraps_with_the_true_successor_and_a_termination_not(ending):
    terminated, truncated, expected = ENDINGS[ending]
    column = lambda first, second: jnp.array([[first], [second]])  # noqa: E731
    advantage = generalized_advantages(
        column(1.0, 2.0),
        column(3.0, 4.0),
        column(10.0, 6.0),
        column(terminated, False),
        column(truncated, False),
        discount=0.5,
        gae_lambda=0.5,
    )
    np.testing.assert_allclose(advantage[:, 0], [expected, 1.0])


def test_running_returns_are_a_loop_and_go_on_where_they_were_left():
    reward, _, _, terminated, truncated = random_rollout(4)
    done = terminated | truncated
    expected, total = np.zeros_like(reward), np.full(reward.shape[1], 0.5)
    for t in range(len(reward)):
        total = reward[t] + DISCOUNT * total
        expected[t] = total
        total = np.where(done[t], 0.0, total)
    start = jnp.full(reward.shape[1], 0.5)
    whole, last = running_returns(jnp.asarray(reward), jnp.asarray(done), start, discount=DISCOUNT)
    np.testing.assert_allclose(whole, expected, rtol=1e-4, atol=1e-5)
    first, carried = running_returns(jnp.asarray(reward[:17]), jnp.asarray(done[:17]), start, discount=DISCOUNT)
    second, end = running_returns(jnp.asarray(reward[17:]), jnp.asarray(done[17:]), carried, discount=DISCOUNT)
    np.testing.assert_allclose(np.concatenate([first, second]), whole, rtol=1e-6)
    chex.assert_trees_all_close(last, end, rtol=1e-6)
