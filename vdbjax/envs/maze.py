"""The C-maze and the S-maze (VDB section 5.2 and appendix D): a point mass that is steered round walls to a goal.

The policy sees the place and not the velocity. Of each maze there is the one that demonstrations are given in and the
one that a recovered reward is transferred to. The mass is simulated in closed form, which is MuJoCo's own contact model
written out for walls along the axes, or by MuJoCo itself on the same maze (`maze_model`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Bool, Float

from vdbjax import limits
from vdbjax.envs.batch import end_of_step, where_done
from vdbjax.envs.frame import EngineName, Frame, Implementation
from vdbjax.envs.on_host import on_host
from vdbjax.envs.physics import make_engine
from vdbjax.types import Environment, EnvState, Key, Step

TIMESTEP = 0.01  # seconds of a physics step
FRAME_SKIP = 5  # physics steps a control step
EPISODE_LENGTH = 100  # control steps
RADIUS, WALL_RADIUS = 0.03, 0.02  # metres, of the particle and of the walls' capsules
WALL_HEIGHT = 0.01  # metres by which the walls' axes lie above the particle's plane
MASS = 1000.0 * 4 / 3 * np.pi * RADIUS**3  # kg
MARGIN = 0.002  # metres; a contact begins within the margins of both geoms together
# MuJoCo's default contact: solref (0.02, 1), solimp (0.9, 0.95, 0.001, 0.5, 2).
STIFFNESS, DAMPING = 1 / (0.95 * 0.02) ** 2, 2 / (0.95 * 0.02)
LEAST_IMPEDANCE, MOST_IMPEDANCE, IMPEDANCE_WIDTH = 0.9, 0.95, 0.001

Positions = Float[Any, "*batch 2"]


class Barrier(NamedTuple):
    """A wall inside the maze, along x, in metres."""

    y: float
    left: float
    right: float


class Maze(NamedTuple):
    """One maze; lengths in metres, borders and barriers as the centre lines of their capsules."""

    low: tuple[float, float]  # borders
    high: tuple[float, float]
    barriers: tuple[Barrier, ...]
    start: tuple[float, float]
    goal: tuple[float, float]
    control_limit: float  # newtons in each direction; as the damping is 1 N s/m, also the steady speed in m/s
    waypoints: tuple[tuple[float, float], ...]  # the middle of each opening, on the way from the start to the goal
    reward: Callable[["Maze", Array, Array, Array], Array]  # (maze, position before, position after, control)
    potential: Callable[["Maze", Positions], Array]  # what the true reward says of a place alone


def _distance(maze: Maze, position: Positions) -> Array:
    return jnp.linalg.norm(position - _row(maze.goal, position), axis=-1)


def _row(point: tuple[float, ...], like: Array) -> Array:
    return jnp.broadcast_to(jnp.array(point, jnp.float32), like.shape)


def _charge_distance(maze: Maze, before: Array, after: Array, control: Array) -> Array:
    return -_distance(maze, before) - 1e-3 * jnp.sum(control**2, axis=-1)


def _near_the_goal(maze: Maze, position: Positions) -> Array:
    distance = _distance(maze, position)
    return jnp.where(distance <= 0.1, 2.0, jnp.where(distance <= 0.2, 1.0, 0.0))


def _pay_the_way(maze: Maze, before: Array, after: Array, control: Array) -> Array:
    shaping = _way_left(maze, before) - _way_left(maze, after)
    return _near_the_goal(maze, before) + shaping


def _way_left(maze: Maze, position: Positions) -> Array:
    """Length of the way to the goal through the middles of the openings still ahead."""
    left = _distance(maze, position)
    rest = 0.0
    for barrier, opening, following in reversed(
        list(zip(maze.barriers, maze.waypoints, [*maze.waypoints[1:], maze.goal]))
    ):
        rest += LEG if following != maze.goal else float(np.hypot(following[0] - opening[0], following[1] - opening[1]))
        through = jnp.linalg.norm(position - _row(opening, position), axis=-1) + rest
        left = jnp.where(position[..., 1] < barrier.y + 0.05, through, left)
    return left


LEG = float(np.hypot(0.2, 0.6))
"""Metres that the true reward counts from one opening to the next: the authors' figure, not their distance (0.72)."""


def _c_maze(barrier: Barrier, opening: float) -> Maze:
    return Maze(
        low=(-0.1, -0.1),
        high=(0.6, 0.6),
        barriers=(barrier,),
        start=(0.3, 0.0),
        goal=(0.3, 0.5),
        control_limit=1.0,
        waypoints=((opening, 0.3),),
        reward=_charge_distance,
        potential=lambda maze, position: -_distance(maze, position),
    )


def _s_maze(side: float) -> Maze:
    """The first opening to the right of the middle with `side` 1, to the left with -1; the second opposite."""

    def barrier(y: float, side: float) -> Barrier:
        return Barrier(y, -0.3, 0.1) if side > 0 else Barrier(y, -0.1, 0.3)

    return Maze(
        low=(-0.3, 0.0),
        high=(0.3, 1.8),
        barriers=(barrier(0.6, side), barrier(1.2, -side)),
        start=(0.0, 0.3),
        goal=(0.0, 1.5),
        control_limit=5.0,
        waypoints=((0.2 * side, 0.6), (-0.2 * side, 1.2)),
        reward=_pay_the_way,
        potential=lambda maze, position: _near_the_goal(maze, position) - _way_left(maze, position),
    )


MAZES = {
    "c": _c_maze(Barrier(0.3, 0.2, 0.6), opening=0.05),
    "c-transfer": _c_maze(Barrier(0.3, -0.1, 0.4), opening=0.5),
    "s": _s_maze(1.0),
    "s-transfer": _s_maze(-1.0),
}
"""Name -> maze. The two C-mazes are no mirror images: their openings differ in width, as in Fu et al.'s own."""


def find_maze(name: str) -> Maze:
    """The maze of that name. Raises ValueError for an unknown one, with the nearest names."""
    limits.known("maze", MAZES, name)
    return MAZES[name]


def is_free(maze: Maze, position: Float[Array, "*batch 2"]) -> Bool[Array, "*batch"]:
    """Whether the particle's centre can be there without touching a wall."""
    apart = RADIUS + WALL_RADIUS
    low, high = _row(maze.low, position) + apart, _row(maze.high, position) - apart
    free = jnp.all((position > low) & (position < high), axis=-1)
    for barrier in maze.barriers:
        nearest = jnp.clip(position[..., 0], barrier.left, barrier.right)
        free &= jnp.hypot(position[..., 0] - nearest, position[..., 1] - barrier.y) > apart
    return free


def advance(maze: Maze, frame: Frame, control: Float[Array, "num_envs 2"]) -> Frame:
    """One control step in closed form: `FRAME_SKIP` semi-implicit Euler steps of MuJoCo's contact model.

    Of the borders only the nearer one in each direction can be touched, and of the barriers only the nearest. Their
    normals are then at right angles wherever two are touched at once, so that each contact has a solution of its own:
    force = max(0, (a_ref - a_free) / (A + R)) along its normal, with A the inverse mass seen there, R its softness and
    a_ref = -b v - k d r for penetration r (MuJoCo's documentation, chapter Computation).
    """
    x, y, control_x, control_y = frame.qpos[:, 0], frame.qpos[:, 1], control[:, 0], control[:, 1]
    speed_x, speed_y = frame.qvel[:, 0], frame.qvel[:, 1]
    middle_x, middle_y = (0.5 * (a + b) for a, b in zip(maze.low, maze.high))
    for _ in range(FRAME_SKIP):
        free_x, free_y = control_x - speed_x, control_y - speed_y  # newtons, before contacts
        side_x, side_y = jnp.where(x < middle_x, 1.0, -1.0), jnp.where(y < middle_y, 1.0, -1.0)
        gap_x = jnp.where(x < middle_x, x - maze.low[0], maze.high[0] - x)
        gap_y = jnp.where(y < middle_y, y - maze.low[1], maze.high[1] - y)
        away_x, away_y, gap = _from_barrier(maze, x, y)
        barrier = _push(gap, away_x * speed_x + away_y * speed_y, away_x * free_x + away_y * free_y)
        force_x = free_x + side_x * _push(gap_x, side_x * speed_x, side_x * free_x) + away_x * barrier
        force_y = free_y + side_y * _push(gap_y, side_y * speed_y, side_y * free_y) + away_y * barrier
        speed_x = speed_x + TIMESTEP / (MASS + TIMESTEP) * force_x  # the damping of 1 N s/m is implicit
        speed_y = speed_y + TIMESTEP / (MASS + TIMESTEP) * force_y
        x, y = x + TIMESTEP * speed_x, y + TIMESTEP * speed_y
    return frame._replace(qpos=jnp.stack([x, y], axis=1), qvel=jnp.stack([speed_x, speed_y], axis=1))


def _from_barrier(maze: Maze, x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Direction away from the nearest barrier's axis, and the distance from it, metres."""
    wall_y, left, right = (jnp.full_like(y, value) for value in maze.barriers[0])
    for before, barrier in zip(maze.barriers, maze.barriers[1:]):
        beyond = y > 0.5 * (before.y + barrier.y)
        wall_y, left, right = (
            jnp.where(beyond, new, old) for new, old in zip(barrier, (wall_y, left, right), strict=True)
        )
    away_x, away_y = x - jnp.clip(x, left, right), y - wall_y
    gap = jnp.sqrt(away_x**2 + away_y**2) + 1e-9
    return away_x / gap, away_y / gap, gap


def _push(gap: Array, speed: Array, free_force: Array) -> Array:
    """Force (N, in the plane) of a wall whose axis is `gap` away; `speed` and `free_force` point away from it."""
    distance = jnp.sqrt(gap**2 + WALL_HEIGHT**2)
    cosine = gap / distance  # the normal leans out of the plane, and only its share in it moves the particle
    violation = distance - (RADIUS + WALL_RADIUS + 2 * MARGIN)
    depth = jnp.minimum(-violation / IMPEDANCE_WIDTH, 1.0)
    rise = jnp.where(depth < 0.5, 2 * depth**2, 1 - 2 * (1 - depth) ** 2)
    impedance = LEAST_IMPEDANCE + (MOST_IMPEDANCE - LEAST_IMPEDANCE) * rise
    wanted = -DAMPING * cosine * speed - STIFFNESS * impedance * violation
    force = MASS * (wanted - cosine * free_force / MASS) / (cosine**2 + (1 - impedance) / impedance)
    return jnp.where(violation < 0, cosine * jnp.maximum(force, 0.0), 0.0)


def maze_model(maze: Maze) -> mujoco.MjModel:
    """The same maze as a MuJoCo model; qpos is the particle's place."""
    (left, down), (right, up) = maze.low, maze.high
    corners = [(left, down), (right, down), (right, up), (left, up)]
    lines = [(*a, *b) for a, b in zip(corners, [*corners[1:], corners[0]])]
    lines += [(barrier.left, barrier.y, barrier.right, barrier.y) for barrier in maze.barriers]
    walls = "".join(
        f'<geom type="capsule" size="{WALL_RADIUS}" rgba=".9 .4 .6 1" '
        f'fromto="{x0} {y0} {WALL_HEIGHT} {x1} {y1} {WALL_HEIGHT}"/>'
        for x0, y0, x1, y1 in lines
    )
    limit = maze.control_limit
    motors = "".join(f'<motor joint="{axis}" ctrllimited="true" ctrlrange="-{limit} {limit}"/>' for axis in "xy")
    return mujoco.MjModel.from_xml_string(f"""
        <mujoco model="maze">
          <option timestep="{TIMESTEP}" gravity="0 0 0" integrator="Euler" iterations="20"/>
          <default>
            <joint damping="1" type="slide"/>
            <geom condim="1" margin="{MARGIN}" density="1000" contype="2" conaffinity="1"/>
          </default>
          <worldbody>
            <body name="particle">
              <joint name="x" axis="1 0 0"/>
              <joint name="y" axis="0 1 0"/>
              <geom type="sphere" size="{RADIUS}" contype="1" conaffinity="1" rgba="0 0 1 1"/>
            </body>
            <site pos="{maze.goal[0]} {maze.goal[1]} 0" size=".02" rgba="1 0 0 1"/>
            {walls}
          </worldbody>
          <actuator>{motors}</actuator>
        </mujoco>""")


def _engine(maze: Maze, engine: EngineName, implementation: Implementation) -> Callable[[Frame, Array], Frame]:
    """(frame, control) -> the next frame; `auto` is the closed form."""
    if engine == "auto":
        return lambda frame, control: advance(maze, frame, control)
    physics = make_engine(maze_model(maze), engine, frame_skip=FRAME_SKIP, implementation=implementation)
    if physics.name == "mjx":
        return physics.advance

    def on_threads(qpos: np.ndarray, qvel: np.ndarray, warmstart: np.ndarray, control: np.ndarray) -> tuple:
        place, velocity, start = (array.astype(np.float64) for array in (qpos, qvel, warmstart))
        return physics.advance(Frame(place, velocity, start, {}), control.astype(np.float64))[:3]

    def like(num_envs: int) -> tuple:
        return (jax.ShapeDtypeStruct((num_envs, 2), jnp.float32),) * 3

    def move(frame: Frame, control: Array) -> Frame:
        place, velocity, start = on_host(on_threads, like, *frame[:3], control)
        return Frame(place, velocity, start, {})

    return move


def make_maze(name: str, *, engine: EngineName = "auto", implementation: Implementation = "jax") -> Environment:
    """One of `MAZES`, for `EPISODE_LENGTH` control steps of 0.05 s; the closed form where the engine is `auto`.

    The start is always the same place, with a velocity drawn from U[-0.01, 0.01] m/s (the authors' code; appendix D has
    a random place). The observation is (x, y) in metres, without the constant 0 that the authors' code has beside them.
    The reward is that of the place before the step (the authors' code), in S with a potential's difference over it.
    Actions are charged as bounded to the range, where the authors' code charges the policy's raw draw.
    """
    maze = find_maze(name)
    move = _engine(maze, engine, implementation)

    def start(key: Key, num_envs: int) -> Frame:
        velocity = jax.random.uniform(key, (num_envs, 2), minval=-0.01, maxval=0.01)
        return Frame(_row(maze.start, velocity), velocity, jnp.zeros((num_envs, 2)), {})

    def reset(key: Key, num_envs: int) -> EnvState:
        frame = start(key, num_envs)
        return EnvState(frame, frame.qpos, jnp.zeros(num_envs, jnp.int32))

    def step(state: EnvState, action: Array, key: Key) -> tuple[EnvState, Step]:
        after = move(state.physics, action)
        reward = maze.reward(maze, state.observation, after.qpos, action)
        terminated = jnp.zeros(len(action), bool)
        elapsed, truncated, done = end_of_step(state.elapsed, terminated, episode_length=EPISODE_LENGTH)
        following = where_done(jnp, done, start(key, len(action)), after)
        return EnvState(following, following.qpos, elapsed), Step(after.qpos, reward, terminated, truncated)

    return Environment(
        name=f"maze/{name}",
        observation_size=2,
        action_size=2,
        action_low=(-maze.control_limit,) * 2,
        action_high=(maze.control_limit,) * 2,
        episode_length=EPISODE_LENGTH,
        reset=reset,
        step=step,
    )
