"""What transferred: true returns of the policies trained on recovered rewards, maps of these, and the table."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdbjax.envs.maze import Maze, find_maze, is_free
from vdbjax.evaluation.reward_map import Ground, Map, draw_maps, rank_correlation
from vdbjax.evaluation.tables import markdown_table, mean_and_spread
from vdbjax.rl.policy import Act, Actor, act_by_mean, act_by_sampling
from vdbjax.rl.reinforcement import Reward
from vdbjax.rl.rollout import rollout, start_rollout
from vdbjax.trained import load_reward, load_trained
from vdbjax.training.devices import root_key
from vdbjax.training.provenance import provenance, versions
from vdbjax.training.run_dir import open_run, read_metrics, write_json, write_whole
from vdbjax.types import Environment, Transition

EXPERT = "expert"
EPISODES = 100
DRAWN_PATHS = 10
DISCOUNT = 0.99
PAPER = {  # VDB Figure 7: mean and deviation of the return in the transfer maze, five runs
    "c": {
        "gail": "-24.6 ± 7.2", "vail": "-65.6 ± 18.9", "airl": "-15.3 ± 7.8", "airl-gp": "-9.14 ± 0.4",
        "vairl-beta0": "-25.5 ± 7.2", "vairl": "-10.0 ± 2.2", "vairl-gp": "-9.18 ± 0.4", "expert": "-5.1",
    },
    "s": {
        "gail": "1.0 ± 1.3", "vail": "20.8 ± 39.7", "airl": "-0.2 ± 0.1", "airl-gp": "-0.14 ± 0.3",
        "vairl-beta0": "62.3 ± 33.2", "vairl": "74.0 ± 38.7", "vairl-gp": "156.5 ± 5.6", "expert": "153.2",
    },
}  # fmt: skip


class Played(NamedTuple):
    """Episodes of one policy in the transfer maze."""

    true: Float[Array, ""]  # mean undiscounted true return
    learnt: Float[Array, ""]  # mean discounted return of the recovered reward
    paths: Float[Array, "time episodes 2"]


def waypoint_act(maze: Maze) -> Act:
    """Steers through the openings to the goal; knows the maze, and no reward."""

    def act(place: Array, key: Any) -> tuple[Array, Array, Array]:
        target = _points(maze.goal, place)
        for barrier, (x, _) in reversed(list(zip(maze.barriers, maze.waypoints))):
            aligned = jnp.abs(place[:, 0] - x) < 0.06
            height = jnp.where(aligned | (place[:, 1] > barrier.y), barrier.y + 0.15, barrier.y - 0.1)
            through = jnp.stack([jnp.full_like(height, x), height], axis=1)
            target = jnp.where(place[:, 1:] < barrier.y + 0.06, through, target)
        return _steer(maze, place, target)

    return act


def straight_act(maze: Maze) -> Act:
    """Steers straight to the goal, into whatever is between."""
    return lambda place, key: _steer(maze, place, _points(maze.goal, place))


def _still_act(place: Array, key: Any) -> tuple[Array, Array, Array]:
    return jnp.zeros_like(place), jnp.zeros(len(place)), jnp.zeros_like(place)


def _points(point: tuple[float, float], like: Array) -> Array:
    return jnp.broadcast_to(jnp.array(point), like.shape)


def _steer(maze: Maze, place: Array, target: Array) -> tuple[Array, Array, Array]:
    force = jnp.clip(20.0 * (target - place), -maze.control_limit, maze.control_limit)
    return force, jnp.zeros(len(place)), force


CONTROLLERS = {"scripted controller": waypoint_act, "straight to the goal": straight_act}


def _play(environment: Environment, act: Act, key: Any) -> Transition:
    """One whole episode a column, actions in the task's units."""

    def in_units(observation: Array, key: Any) -> tuple[Array, Array, Array]:
        _, log_prob, command = act(observation, key)
        return command, log_prob, command

    start = start_rollout(environment, key, EPISODES)
    return rollout(environment, in_units, start, key, length=environment.episode_length)[1]


def _summary(steps: Transition, reward: Reward) -> Played:
    learnt = reward.apply(reward.params, steps.observation, steps.action, steps.next_observation)
    weights = DISCOUNT ** jnp.arange(len(learnt), dtype=jnp.float32)
    return Played(
        jnp.mean(jnp.sum(steps.reward, axis=0)),
        jnp.mean(weights @ learnt),
        steps.observation[:, :DRAWN_PATHS, :2],
    )


def score_references(folder: Path, environment: Environment) -> dict[str, float]:
    """True returns of what needs no recovered reward, in the transfer task; the expert's in the training task."""
    found = {EXPERT: _last(folder / "expert"), "trained on the true reward": _last(folder / "direct")}
    if environment.name.startswith("maze/"):
        maze = find_maze(environment.name.removeprefix("maze/"))
        acts = {name: make(maze) for name, make in CONTROLLERS.items()} | {"zero action": _still_act}
        for name, act in acts.items():
            reward = _play(environment, act, root_key(0)).reward
            found[name] = float(jnp.mean(jnp.sum(reward, axis=0)))
    return found


def _last(run: Path) -> float:
    return float(np.mean(_last_returns(run)))


def _last_returns(run: Path) -> list[float]:
    return np.atleast_1d(read_metrics(open_run(run)[0])[-1]["eval/stochastic_return"]).tolist()


def score_method(folder: Path, method: str, environment: Environment, *, restarts: int) -> dict[str, Any]:
    """Scores a method's policies in the transfer task, draws its maps, and writes both beside its retraining run."""
    retrained = load_trained(folder / "retraining" / method)
    rewards = load_reward(folder / "imitation" / method, environment)
    policy, apply = retrained.built.policy, rewards[0].apply

    @jax.jit
    def play_all(actors: Actor, params: Any, key: Any) -> tuple[Played, Played]:
        def one(actor_and_params: tuple) -> tuple[Played, Played]:
            actor, params = actor_and_params
            acts = act_by_sampling(policy, actor), act_by_mean(policy, actor)
            sampled, mean = (_summary(_play(environment, act, key), Reward(apply, params)) for act in acts)
            return sampled, mean

        return jax.lax.map(one, (actors, params))

    each = [reward.params for reward in rewards for _ in range(restarts)]
    sampled, mean = jax.device_get(play_all(_stack(retrained.actors), _stack(each), root_key(2)))
    learnt = sampled.learnt.reshape(-1, restarts)
    chosen = learnt.argmax(axis=1)
    rows = np.arange(len(rewards)) * restarts + chosen
    content: dict[str, Any] = {
        "method": method,
        "restarts": restarts,
        "imitation_return": _last_returns(folder / "imitation" / method),
        "return": sampled.true[rows].tolist(),
        "deterministic_return": mean.true[rows].tolist(),
        "all_returns": sampled.true.reshape(-1, restarts).tolist(),
        "learnt_returns": learnt.tolist(),
        "chosen": chosen.tolist(),
    }
    if environment.name.startswith("maze/"):
        maze = find_maze(environment.name.removeprefix("maze/"))
        content |= _learnt_returns_of_controllers(environment, maze, rewards)
        content |= map_rewards(
            maze, rewards, folder / f"{method}.png", paths=sampled.paths[rows], returns=sampled.true[rows]
        )
    write_json(score_file(folder, method), content)
    return content


def score_file(folder: Path, method: str) -> Path:
    """Where a method's score lies; it is there when the method is done."""
    return folder / "retraining" / method / "score.json"


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _learnt_returns_of_controllers(
    environment: Environment, maze: Maze, rewards: list[Reward]
) -> dict[str, list[float]]:
    """What each recovered reward says of the way through and of that into the wall: whose fault a stuck policy is."""
    found = {}
    for name, make in CONTROLLERS.items():
        steps = _play(environment, make(maze), root_key(0))
        found[f"learnt_{name.split()[0]}"] = [float(_summary(steps, reward).learnt) for reward in rewards]
    return found


def map_rewards(
    maze: Maze,
    rewards: list[Reward],
    out: Path,
    *,
    paths: np.ndarray | None = None,
    returns: np.ndarray | None = None,
) -> dict[str, Any]:
    """Draws the true reward and each recovered one over the maze; gives their rank correlations and deviations.

    A reward of actions too is drawn at action 0.
    """
    walls = _walls(maze)
    ground = Ground(maze.low, maze.high, walls, maze.start, maze.goal)
    cells = jnp.float32(ground.cells())
    free = np.asarray(is_free(maze, cells))
    true = np.asarray(maze.potential(maze, cells))
    maps, correlations, deviations = [Map("true reward", true)], [], []
    for seed, reward in enumerate(rewards):
        values = np.asarray(reward.apply(reward.params, cells, jnp.zeros_like(cells), cells))
        correlations.append(rank_correlation(values, true, free))
        deviations.append(float(values[free].std()))
        title = f"seed {seed}, rank corr. {correlations[-1]:.2f}"
        if returns is not None:
            title += f"\nreturn {returns[seed]:.1f}"
        maps.append(Map(title, values, None if paths is None else paths[seed]))
    draw_maps(maps, ground, free, out)
    return {"rank_correlation": correlations, "reward_deviation": deviations}


def _walls(maze: Maze) -> list[tuple[float, float, float, float]]:
    (left, down), (right, up) = maze.low, maze.high
    borders = [(left, down, right, down), (right, down, right, up), (right, up, left, up), (left, up, left, down)]
    return borders + [(barrier.left, barrier.y, barrier.right, barrier.y) for barrier in maze.barriers]


def write_table(folder: Path, maze: str, scores: dict[str, dict[str, Any]], references: dict[str, float]) -> str:
    """Writes `table.json` and `table.md`, and gives the latter."""
    paper = PAPER.get(maze, {})
    heads: tuple[str, ...] = (
        "",
        "return in the transfer task",
        "each seed",
        "single run",
        "paper",
        "in the training task",
    )
    if mapped := any("rank_correlation" in score for score in scores.values()):
        heads += ("rank correlation", "passed over")
    rows = []
    for method, score in scores.items():
        single = [row[0] for row in score["all_returns"]]
        cells = [
            method,
            f"**{mean_and_spread(score['return'])}**",
            " ".join(f"{value:.1f}" for value in score["return"]),
            mean_and_spread(single),
            paper.get(method, ""),
            mean_and_spread(score["imitation_return"]),
        ]
        if "rank_correlation" in score:
            best = [score["learnt_returns"][seed][index] for seed, index in enumerate(score["chosen"])]
            missed = sum(way > policy for way, policy in zip(score["learnt_scripted"], best, strict=True))
            cells += [f"{np.mean(score['rank_correlation']):.2f}", f"{missed} of {len(best)}"]
        rows.append(cells)
    for name, value in references.items():
        places = ("", f"{value:.1f}") if name == EXPERT else (f"{value:.1f}", "")
        rows.append([name, places[0], "", "", paper.get(name, ""), places[1]])
    text = markdown_table(heads, rows)
    content = {"maze": maze, "paper": paper, "references": references, "methods": scores}
    write_json(folder / "table.json", {**provenance(versions()), **content})
    write_whole(folder / "table.md", text)
    notes = [
        "True returns of stochastic policies, mean ± deviation over seeds. Of each seed's restarts the policy of the "
        "highest learnt return counts; 'single run' is the first one."
    ]
    if mapped:
        notes.append(
            "Passed over: rewards on which the scripted controller has a higher learnt return than the policy that was "
            "trained on it."
        )
    return "\n".join([text, *notes])
