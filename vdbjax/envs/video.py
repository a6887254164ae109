"""Video imitation: a planar biped beside a film of a clip (VDB section 5.1, "Video Imitation", and appendix C).

The policy observes its own state and the phase, as in motion imitation. Of the clip there is nothing but the film: its
pictures and the phase at which each was taken. The reference motion is used only to judge how well it was followed.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vdbjax.data.mocap import find_clip, load_clip
from vdbjax.envs.frame import EngineName, Implementation
from vdbjax.envs.humanoid_model import BODIES
from vdbjax.envs.mocap_humanoid import follow_clip, observe_clip
from vdbjax.envs.painter import paint
from vdbjax.envs.planar_humanoid import PLANAR, projected
from vdbjax.envs.reference_motion import Motion
from vdbjax.types import Environment, Film

FILM_HZ = 120
"""Pictures a second of the film, at least: in a step of a 30th of a second a running foot crosses five pixels."""


def make_video(clip: str, *, engine: EngineName = "auto", implementation: Implementation = "jax") -> Environment:
    """The task of a clip's name or path. Raises ClipError where there is no such clip or it is damaged."""
    recorded = projected(load_clip(find_clip(clip)))
    environment, motion = follow_clip(
        recorded, PLANAR, engine=engine, implementation=implementation, targets="absolute"
    )
    return environment._replace(name=f"video/{recorded.name}", picture=picture, film=_film(motion))


def picture(observation: Float[Array, "*batch observation"]) -> UInt8[Array, "*batch 64 64 3"]:
    """What the camera sees of a state, which its observation tells whole."""
    return paint(PLANAR.parts, *in_plane(observation))


def in_plane(
    observation: Float[Array, "*batch observation"],
) -> tuple[Float[Array, "*batch bodies 2"], Float[Array, "*batch bodies 2"]]:
    """Of an observation: each body's place (x from the root, z; metres), and the direction of its own x axis."""
    batch, count = observation.shape[:-1], len(BODIES)
    height, rest = observation[..., :1], observation[..., 1:]
    others = rest[..., : 2 * (count - 1)].reshape(*batch, count - 1, 2)
    root = jnp.stack([jnp.zeros_like(height), height], axis=-1)
    direction = rest[..., 2 * (count - 1) : 2 * (2 * count - 1)].reshape(*batch, count, 2)
    return jnp.concatenate([root, root + others], axis=-2), direction


def _film(motion: Motion) -> Film:
    count = max(2, round(FILM_HZ * motion.duration))
    seconds = jnp.arange(count) * (motion.duration / count)
    seen = observe_clip(motion, seconds)
    return Film(np.asarray(jax.jit(picture)(seen)), np.asarray(seen[:, -2:]))
