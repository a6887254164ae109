"""Environments that isolate one skill each (Andy Jones, "Debugging RL, without the agonizing pain"; rejax's tests).

All answers are known in closed form, so that a learner which lacks the skill fails a test of seconds. An episode draws
a cue u ~ U[-1, 1] unless said otherwise; what is seen, what is paid and when it ends are functions of it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vdbjax.data.demonstrations import DemonstrationFile, from_episodes
from vdbjax.types import Demonstrations, Environment, EnvState, Film, Posture, Step


def uniform_cue(key, num_envs):
    """u ~ U[-1, 1]."""
    return jax.random.uniform(key, (num_envs,), minval=-1.0, maxval=1.0)


def make_probe(
    name: str,
    *,
    observe: Callable,  # (cue, elapsed) -> one number, or a tuple of them
    reward: Callable,  # (cue, elapsed, action[:, 0]) -> reward
    length: Callable = lambda cue: 1,  # cue -> control steps
    terminates: Callable = lambda cue: True,  # cue -> whether the end is a termination, or a truncation
    draw: Callable = uniform_cue,
    observation_size: int = 1,
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> Environment:
    """A batch of episodes, as described by functions of the cue and of the steps since the reset."""

    def look(cue, elapsed):
        parts = observe(cue, elapsed.astype(jnp.float32))
        parts = parts if isinstance(parts, tuple) else (parts,)
        return jnp.stack([jnp.broadcast_to(part, cue.shape) for part in parts], axis=-1)

    def reset(key, num_envs):
        cue, elapsed = draw(key, num_envs), jnp.zeros(num_envs, jnp.int32)
        return EnvState(cue, look(cue, elapsed), elapsed)

    def step(state, action, key):
        cue, elapsed = state.physics, state.elapsed + 1
        paid = reward(cue, state.elapsed.astype(jnp.float32), action[:, 0]) + jnp.zeros(cue.shape)
        done = elapsed >= length(cue)
        terminated = done & terminates(cue)
        seen = look(cue, elapsed)
        fresh, ongoing = reset(key, len(cue)), EnvState(cue, seen, elapsed)
        choose = lambda new, old: jnp.where(done.reshape(-1, *[1] * (old.ndim - 1)), new, old)  # noqa: E731
        return jax.tree.map(choose, fresh, ongoing), Step(seen, paid, terminated, done & ~terminated)

    low, high = bounds
    return Environment(name, observation_size, 1, (low,), (high,), 100, reset, step)


CONSTANT = make_probe("constant", observe=lambda u, t: 0.0, reward=lambda u, t, a: 1.0)
"""Pays 1 and ends. A value function learns one number."""

SIGN = make_probe("sign", observe=lambda u, t: jnp.sign(u), reward=lambda u, t, a: jnp.sign(u))
"""Pays the sign that is seen. The value must depend on the observation."""

DELAYED = make_probe("delayed", observe=lambda u, t: t, reward=lambda u, t, a: t, length=lambda u: 2)
"""Two steps, paid 0 and 1. The value must carry the second reward back, discounted once."""

MATCH = make_probe("match", observe=lambda u, t: u, reward=lambda u, t, a: -((a - 0.7 * u) ** 2))
"""One step: the action must be 0.7 of what is seen."""

TIME_LIMIT = make_probe(
    "time-limit",
    observe=lambda u, t: 0.0,
    reward=lambda u, t, a: 1.0,
    length=lambda u: 2,
    terminates=lambda u: False,
)
"""Pays 1 a step for ever, as far as can be seen; the limit of two steps is not the task's. Worth 1 / (1 - gamma)."""

HARD_END = make_probe("hard-end", observe=lambda u, t: 0.0, reward=lambda u, t, a: 1.0, length=lambda u: 2)
"""The same with a true end: worth 1 + gamma on the first step, 1 on the second, which look alike."""

COUNTING = make_probe(
    "counting",
    draw=lambda key, num_envs: jnp.arange(num_envs, dtype=jnp.float32),
    observe=lambda u, t: (u, t),
    reward=lambda u, t, a: t + 1.0,
    length=lambda u: u + 2,
    terminates=lambda u: u % 2 == 0,
    observation_size=2,
)
"""Nothing is drawn: row i sees (i, t), is paid 1, 2, 3, ..., for i + 2 steps; even rows terminate, odd ones are cut."""


def expert_action(cue):
    """What the expert of `FOLLOW` does, in its range [-2, 2]."""
    return 1.5 * np.tanh(2.0 * np.asarray(cue))


FOLLOW = make_probe(
    "follow",
    observe=lambda u, t: (u, jnp.cos(t)),
    reward=lambda u, t, a: 1.0 - (a - 1.5 * jnp.tanh(2.0 * u)) ** 2,
    length=lambda u: 5,
    terminates=lambda u: u > 0,
    observation_size=2,
    bounds=(-2.0, 2.0),
)
"""Five steps of doing what `expert_action` does; of the two numbers seen one matters. Some episodes terminate."""


def follow_demonstrations(num_episodes: int = 40, *, noise: float = 0.1) -> DemonstrationFile:
    """An expert of `FOLLOW`, who does nearly the right thing."""
    generator = np.random.default_rng(0)
    cue = generator.uniform(-1.0, 1.0, num_episodes)
    seen = [np.stack([np.full(6, u), np.cos(np.arange(6))], axis=1) for u in cue]
    actions = [expert_action(u) + noise * generator.standard_normal((5, 1)) for u in cue]
    paid = [1.0 - (a[:, 0] - expert_action(u)) ** 2 for a, u in zip(actions, cue)]
    demonstrations = from_episodes(seen, actions, paid, [bool(u > 0) for u in cue])
    return DemonstrationFile(demonstrations, "follow", -3.0, "closed form")


def turned_by_cue(state: EnvState) -> tuple[Posture, Posture]:
    """The root turned by 2u about x, the other joint and the whole reference not at all: an error of |u| radians."""
    cue = state.physics
    still = jnp.broadcast_to(jnp.array([1.0, 0.0, 0.0, 0.0]), (len(cue), 2, 4))
    root = jnp.stack([jnp.cos(cue), jnp.sin(cue), 0 * cue, 0 * cue], axis=-1)
    nowhere = jnp.zeros((len(cue), 2, 3))
    return Posture(jnp.stack([root, still[:, 1]], axis=1), nowhere), Posture(still, nowhere)


def motion_demonstrations() -> Demonstrations:
    """Expert's states, of all phases, and no actions."""
    generator, turns = np.random.default_rng(0), 2 * np.pi * np.arange(41) / 5
    seen = np.stack([generator.uniform(-1, 1, 41), np.cos(turns), np.sin(turns)], axis=1).astype(np.float32)
    nothing, never = np.zeros(40, np.float32), np.zeros(40, bool)
    return Demonstrations(seen[:-1], nothing[:, None], seen[1:], nothing, never, np.arange(40) == 39)


MOTION = make_probe(
    "motion",
    observe=lambda u, t: (u, jnp.cos(2 * jnp.pi * t / 5), jnp.sin(2 * jnp.pi * t / 5)),
    reward=lambda u, t, a: 1.0 - (a - 1.5 * jnp.tanh(2.0 * u)) ** 2,
    length=lambda u: 5,
    terminates=lambda u: u > 0,
    observation_size=3,
    bounds=(-2.0, 2.0),
)._replace(episode_length=8, phase_size=2, demonstrations=motion_demonstrations(), follow=turned_by_cue)
"""`FOLLOW` with a phase and a reference motion, whatever the actions; some episodes fall after five of eight steps."""


def as_picture(observation):
    """One colour all over: red by the cue, green and blue by the phase."""
    shades = jnp.round(127.5 * (1.0 + jnp.clip(observation, -1.0, 1.0))).astype(jnp.uint8)
    return jnp.broadcast_to(shades[..., None, None, :], (*shades.shape[:-1], 64, 64, 3))


FILMED = MOTION._replace(
    demonstrations=None,
    picture=as_picture,
    film=Film(np.asarray(as_picture(MOTION.demonstrations.observation[:5])), MOTION.demonstrations.observation[:5, 1:]),
)
"""`MOTION` with a camera, and nothing but a film to learn from."""
