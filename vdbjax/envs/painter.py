"""A small painter: a character from the side as a picture of 64 x 64 pixels, in JAX (VDB section 5.1).

The picture is what an orthographic camera sees that stands beside the character, looks along y and goes along with its
root: the bodies' own spheres, capsules and boxes, by their signed distances in the plane x, z. A pixel is covered by
the share 1/2 - distance / pixel width of a body. From back to front: sky and ground, the left limbs, the trunk, the
right limbs. The ground is plain, since marks on it would tell how far the character has come, which nobody observes.
"""

import functools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Float, UInt8, UInt32

from vdbjax.envs.humanoid_model import Part

PIXELS = 64
VIEW = 2.0  # metres across and down
BOTTOM = -0.1  # height of the picture's lower edge, metres
PIXEL = VIEW / PIXELS

SKY, GROUND = (0.80, 0.87, 0.93), (0.45, 0.50, 0.55)
LAYERS = {"left": (0.42, 0.26, 0.16), "trunk": (0.72, 0.46, 0.28), "right": (0.95, 0.72, 0.50)}
"""From back to front, with their colours: far limbs are darker."""

SHIFTS = (0, 8, 16)  # of red, green and blue in a word
BATCH = 32  # pictures at a time

Plane = Float[Array, "*batch bodies 2"]


def paint(parts: tuple[Part, ...], position: Plane, direction: Plane) -> UInt8[Array, "*batch 64 64 3"]:
    """The picture of bodies at these places (x from the camera, z; metres), turned as `coverage` says."""
    batch = position.shape[:-2]
    rows = tuple(plane.reshape(-1, *plane.shape[-2:]) for plane in (position, direction))
    # A loop over parts of the batch, and a word a pixel: else XLA works the distances out again for every colour of it,
    # which takes 15 times as long on the CPU.
    words = jax.lax.map(lambda row: _colour_words(coverage(parts, *row)), rows, batch_size=BATCH)
    colours = jnp.stack([(words >> shift) & 255 for shift in SHIFTS], axis=-1)
    return colours.astype(jnp.uint8).reshape(*batch, PIXELS, PIXELS, 3)


def _colour_words(covers: list[Float[Array, " pixels"]]) -> UInt32[Array, " pixels"]:
    """The layers laid over each other, red in the lowest byte."""
    below = np.clip(0.5 - _pixels()[1] / PIXEL, 0.0, 1.0)
    word = jnp.zeros(below.shape, jnp.uint32)
    for channel, shift in enumerate(SHIFTS):
        shade = jnp.asarray(SKY[channel] + below * (GROUND[channel] - SKY[channel]))
        for cover, colour in zip(covers, LAYERS.values()):
            shade = shade + cover * (colour[channel] - shade)
        word = word | (jnp.round(255.0 * shade).astype(jnp.uint32) << shift)
    return word


def coverage(parts: tuple[Part, ...], position: Plane, direction: Plane) -> list[Float[Array, "*batch pixels"]]:
    """How much of each pixel every layer covers, in [0, 1]; pixels row by row from the top left.

    `direction` is (x, z) of each body's own x axis: (cos, -sin) of its turn about y.
    """
    distances: dict[str, list[Array]] = {layer: [] for layer in LAYERS}
    for index, part in enumerate(parts):
        layer = part.name.partition("_")[0] if "_" in part.name else "trunk"
        distances[layer].append(_distance(part, position[..., index, :], direction[..., index, :]))
    nearest = (functools.reduce(jnp.minimum, each) for each in distances.values())
    return [jnp.clip(0.5 - distance / PIXEL, 0.0, 1.0) for distance in nearest]


def _distance(
    part: Part, position: Float[Array, "*batch 2"], direction: Float[Array, "*batch 2"]
) -> Float[Array, "*batch pixels"]:
    """From each pixel's centre to the body, metres; inside it negative, though no more than by its radius."""
    (half_x, half_z), radius = _box_and_radius(part)
    x, z = (pixels.reshape(*[1] * (position.ndim - 1), -1) for pixels in _pixels())
    along, down = direction[..., :1], direction[..., 1:]  # the body's z axis is (-down, along)
    place_x, place_z = position[..., :1], position[..., 1:]
    right = x * along + z * down - (place_x * along + place_z * down + part.centre[0])
    up = z * along - x * down - (place_z * along - place_x * down + part.centre[2])
    beside, above = jnp.abs(right) - half_x, jnp.abs(up) - half_z
    distance = jnp.sqrt(jnp.maximum(beside, 0.0) ** 2 + jnp.maximum(above, 0.0) ** 2) - radius
    return distance if radius else distance + jnp.minimum(jnp.maximum(beside, above), 0.0)


def _box_and_radius(part: Part) -> tuple[tuple[float, float], float]:
    """A body as a box, given by its half-lengths in x and z, grown by a radius; metres."""
    if part.shape == "foot":
        return (part.size[0], part.size[2]), 0.0
    return (0.0, part.size[1] if part.shape == "capsule" else 0.0), part.size[0]


def _pixels() -> tuple[Float[np.ndarray, " pixels"], Float[np.ndarray, " pixels"]]:
    """x of each pixel's centre, from the camera, and z; metres."""
    steps = (np.arange(PIXELS, dtype=np.float32) + 0.5) * PIXEL
    x, z = np.meshgrid(steps - VIEW / 2, BOTTOM + VIEW - steps)
    return x.ravel(), z.ravel()


def side_camera(model: mujoco.MjModel, root_x: float) -> mujoco.MjvCamera:
    """MuJoCo's camera for the same view; turns all of the model's free cameras orthographic."""
    model.vis.global_.orthographic, model.vis.global_.fovy = 1, VIEW
    camera = mujoco.MjvCamera()
    camera.type, camera.azimuth, camera.elevation, camera.distance = mujoco.mjtCamera.mjCAMERA_FREE, 90.0, 0.0, 4.0
    camera.lookat[:] = root_x, 0.0, BOTTOM + VIEW / 2
    return camera
