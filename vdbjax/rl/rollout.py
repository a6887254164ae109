"""Acting in a batch of episodes: rollouts for learning, whole episodes for scoring and for demonstrations."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vdbjax.rl.policy import Act, Actor, Policy, act_by_mean, act_by_sampling
from vdbjax.types import Environment, EnvState, Key, Metrics, Transition


class RolloutState(NamedTuple):
    """Episodes in progress, with the true return each has had so far."""

    env: EnvState
    episode_return: Float[Array, " num_envs"]
    finished_return: Float[Array, ""]  # mean over the episodes that ended in the latest rollout in which any did
    finished_length: Float[Array, ""]  # control steps, likewise


def start_rollout(environment: Environment, key: Key, num_envs: int) -> RolloutState:
    """Fresh episodes."""
    zero = jnp.zeros(())
    return RolloutState(environment.reset(key, num_envs), jnp.zeros(num_envs), zero, zero)


def rollout(
    environment: Environment, act: Act, state: RolloutState, key: Key, *, length: int
) -> tuple[RolloutState, Transition, Metrics]:
    """`length` control steps of every episode, restarting those that end; transitions are `[length, num_envs, ...]`."""

    def forward(carry: tuple[EnvState, Array], key: Key) -> tuple[tuple[EnvState, Array], tuple]:
        env, total = carry
        key_act, key_env = jax.random.split(key)
        action, log_prob, command = act(env.observation, key_act)
        after, step = environment.step(env, command, key_env)
        seen = Transition(
            observation=env.observation,
            action=action,
            reward=step.reward,
            next_observation=step.next_observation,
            terminated=step.terminated,
            truncated=step.truncated,
            log_prob=log_prob,
        )
        total = total + step.reward
        done = step.terminated | step.truncated
        finished = (done, total, env.elapsed + 1)
        return (after, jnp.where(done, 0.0, total)), (seen, finished)

    keys = jax.random.split(key, length)
    (env, total), (transitions, finished) = jax.lax.scan(forward, (state.env, state.episode_return), keys)
    mean_return, mean_length = _finished_means(state, *finished)
    metrics = {
        "episode/return": mean_return,
        "episode/length": mean_length,
        "episode/terminated_fraction": jnp.mean(transitions.terminated.astype(jnp.float32)),
    }
    return RolloutState(env, total, mean_return, mean_length), transitions, metrics


def _finished_means(state: RolloutState, done: Array, total: Array, length: Array) -> tuple[Array, Array]:
    count = jnp.sum(done)
    any_done, divisor = count > 0, jnp.maximum(count, 1)
    mean_return = jnp.sum(jnp.where(done, total, 0.0)) / divisor
    mean_length = jnp.sum(jnp.where(done, length, 0)) / divisor
    return (
        jnp.where(any_done, mean_return, state.finished_return),
        jnp.where(any_done, mean_length, state.finished_length),
    )


class Episodes(NamedTuple):
    """Undiscounted true return and length (control steps) of whole episodes."""

    returns: Float[Array, " episodes"]
    lengths: Int[Array, " episodes"]


def run_episodes(environment: Environment, act: Act, key: Key, *, num_episodes: int) -> Episodes:
    """One whole episode from each of `num_episodes` fresh starts; stops as soon as the last one has ended."""
    key_reset, key_steps = jax.random.split(key)

    def advance(carry: tuple) -> tuple:
        env, returns, lengths, alive, step_index = carry
        key_act, key_env = jax.random.split(jax.random.fold_in(key_steps, step_index))
        after, step = environment.step(env, act(env.observation, key_act)[2], key_env)
        returns = returns + jnp.where(alive, step.reward, 0.0)
        lengths = lengths + alive
        return after, returns, lengths, alive & ~(step.terminated | step.truncated), step_index + 1

    start = (
        environment.reset(key_reset, num_episodes),
        jnp.zeros(num_episodes),
        jnp.zeros(num_episodes, jnp.int32),
        jnp.ones(num_episodes, bool),
        jnp.int32(0),
    )
    _, returns, lengths, _, _ = jax.lax.while_loop(lambda carry: jnp.any(carry[3]), advance, start)
    return Episodes(returns, lengths)


class Trace(NamedTuple):
    """Fixed-length episodes, step by step: `[time, episodes, ...]`, each entry as it was before that step."""

    seen: Any
    reward: Float[Array, "time episodes"]
    alive: Bool[Array, "time episodes"]  # of the first episode of each row; what follows its end is of another
    terminated: Bool[Array, "time episodes"]  # whether that episode has ended by the task's own rule


def trace_episodes(
    environment: Environment, act: Act, key: Key, *, num_episodes: int, num_steps: int, see: Callable[[EnvState], Any]
) -> Trace:
    """`num_steps` from fresh starts, keeping what `see` makes of each state."""
    key_reset, key_steps = jax.random.split(key)

    def forward(carry: tuple, key: Key) -> tuple[tuple, Trace]:
        env, alive, terminated = carry
        key_act, key_env = jax.random.split(key)
        after, step = environment.step(env, act(env.observation, key_act)[2], key_env)
        row = Trace(see(env), step.reward, alive, terminated)
        ended = alive & step.terminated
        return (after, alive & ~(step.terminated | step.truncated), terminated | ended), row

    start = environment.reset(key_reset, num_episodes), jnp.ones(num_episodes, bool), jnp.zeros(num_episodes, bool)
    return jax.lax.scan(forward, start, jax.random.split(key_steps, num_steps))[1]


def evaluate_actor(environment: Environment, policy: Policy, actor: Actor, key: Key, *, num_episodes: int) -> Metrics:
    """True returns over fresh episodes, of the mean action and of the stochastic policy, all at once."""
    by_mean, by_sampling = act_by_mean(policy, actor), act_by_sampling(policy, actor)

    def act(observation: Array, key: Key) -> tuple[Array, Array, Array]:
        halves = by_mean(observation[:num_episodes], key), by_sampling(observation[num_episodes:], key)
        return jax.tree.map(lambda *both: jnp.concatenate(both), *halves)

    found = run_episodes(environment, act, key, num_episodes=2 * num_episodes)
    returns, sampled = found.returns[:num_episodes], found.returns[num_episodes:]
    return {
        "eval/return": jnp.mean(returns),
        "eval/return_std": jnp.std(returns),
        "eval/length": jnp.mean(found.lengths[:num_episodes].astype(jnp.float32)),
        "eval/stochastic_return": jnp.mean(sampled),
        "eval/stochastic_return_std": jnp.std(sampled),
    }
