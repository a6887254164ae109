"""`python -m vdbjax.transfer`: does a recovered reward teach the task again, in another maze? (VDB Figure 7)

An expert is trained on the true reward of the training maze; each method recovers a reward from its demonstrations
there; new policies learn from that reward in the transfer maze, and are scored there by the true one. Each stage leaves
a run folder, and a command that was stopped goes on with what is missing.
"""

import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from vdbjax import command, limits
from vdbjax.build import build, schedule_of
from vdbjax.data.demonstrations import DemonstrationFile, from_episodes, save
from vdbjax.envs.env import EnvironmentConfig, make_environment
from vdbjax.episodes import random_return
from vdbjax.networks import GaussianActor
from vdbjax.rl.policy import Actor, act_by_sampling
from vdbjax.rl.reinforcement import Reward
from vdbjax.rl.rollout import rollout, start_rollout
from vdbjax.run_config import RunConfig, by_own_files
from vdbjax.saved_config import refuse_changes
from vdbjax.trained import load_reward, read_config
from vdbjax.training.checkpoint import load_checkpoint, saved_iterations
from vdbjax.training.devices import root_key
from vdbjax.training.loop import Schedule, Stopped, over_seeds, train
from vdbjax.training.metrics import NonFiniteError
from vdbjax.training.run_dir import create_run, open_run
from vdbjax.transfer_score import score_file, score_method, score_references, write_table
from vdbjax.transfer_settings import (
    EPISODES_A_SNAPSHOT,
    METHODS,
    SETTINGS,
    SNAPSHOTS,
    Setting,
    expert_config,
    imitation_config,
    retraining_config,
)
from vdbjax.types import Algorithm, Environment

Stage = Literal["expert", "imitation", "retraining", "table"]
LEAN = 0.5
"""Deviation of what restarts add to the first mean action, in halves of the action's range: they set out to all sides,
where policies that all begin in the middle run into the same barrier."""
WIDE_STD = 1.0
"""Deviation of the first policy of every other restart, in halves of the action's range: a small one ends closer to
what it finds, a large one finds more."""


@dataclass(frozen=True)
class Options:
    """What the command line gives."""

    maze: str = "c"
    """c or s (VDB Figure 7), or ant: an ant, and one with two legs disabled."""
    methods: tuple[str, ...] = METHODS
    """Recipes to compare, among gail vail airl airl-gp vairl-beta0 vairl vairl-gp."""
    seeds: int = 5
    """Rewards recovered by each method, by vmap."""
    restarts: int = 4
    """Policies trained on each reward in the transfer maze, all but the first leaning to some side as they start, every
    other one with a deviation of half the range; the one of the highest learnt return counts."""
    iterations: int | None = None
    """Iterations of an expert, the last few of which are its demonstrations, of imitation and of retraining. None: 200
    in a maze, but 300 of imitation and retraining in the S-maze (where the paper retrains for 400, of 50,000 steps);
    1,000 of an ant."""
    num_envs: int | None = None
    """Episodes at once for each seed. None: as many as make batches of 10,000 steps."""
    seed: int = 0
    """Seed of everything random, the expert and its demonstrations too, which all rewards of a table share."""
    stages: tuple[Stage, ...] = get_args(Stage)
    """What to do, in this order; those that are left out must be there already."""
    out: Path | None = None
    """Folder of all stages. None: runs/transfer-MAZE."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        limits.known("maze", SETTINGS, self.maze)
        limits.known("method", METHODS, *self.methods)
        limits.not_empty(self, "--methods")
        limits.at_least(1, self, "--seeds", "--restarts", "--iterations", "--num-envs")
        limits.seed(self, "--seed")

    @property
    def setting(self) -> Setting:
        """The pair of tasks, with what the options change."""
        found = SETTINGS[self.maze]
        if self.iterations:
            found = found._replace(expert_iterations=self.iterations, iterations=self.iterations)
        return found._replace(num_envs=self.num_envs or found.num_envs, seed=self.seed)

    @property
    def folder(self) -> Path:
        """Where the stages lie."""
        return (self.out or Path("runs") / f"transfer-{self.maze}").absolute()


def run(options: Options) -> None:
    """All stages asked for."""
    folder, methods = options.folder, options.methods
    command.check_table_folder(folder)
    plan = [("expert", partial(_train_experts, options))] if "expert" in options.stages else []
    for stage, work in (("imitation", _imitate), ("retraining", _retrain)):
        if stage in options.stages:
            plan += [(f"{stage} {method}", partial(work, options, method)) for method in methods]
    for index, (what, do) in enumerate(plan):
        print(f"[{index + 1}/{len(plan)}] {what}", flush=True)
        do()
    if "table" in options.stages:
        environment = make_environment(EnvironmentConfig(options.setting.transfer))
        for run in ("expert", "direct"):
            _require_finished(folder / run, "expert")
        for method in methods:
            _require_finished(folder / "retraining" / method, "retraining")
            _check_same(folder / "retraining" / method, _retraining_of(options, method))
            _check_same(folder / "imitation" / method, _imitation_of(options, method))
        scores = {method: _scored(options, method, environment) for method in METHODS if method in methods}
        print(write_table(folder, options.maze, scores, score_references(folder, environment)))


def _scored(options: Options, method: str, environment: Environment) -> dict[str, Any]:
    file = score_file(options.folder, method)
    if file.exists():
        return json.loads(file.read_text())
    return score_method(options.folder, method, environment, restarts=options.restarts)


def _train_experts(options: Options) -> None:
    """The expert and its demonstrations, and for reference experts of the transfer maze."""
    setting, folder = options.setting, options.folder
    before_snapshots = max(1, setting.expert_iterations - SNAPSHOTS + 1)
    config = expert_config(setting, setting.train, seeds=1, iterations=before_snapshots)
    _train(folder / "expert", config)
    if not _demonstrations(options).exists():
        _collect(folder / "expert", _demonstrations(options))
    direct = expert_config(setting, setting.transfer, seeds=options.seeds, iterations=setting.expert_iterations)
    _train(folder / "direct", direct)


def _train(path: Path, config: RunConfig, rewards: list[Reward] | None = None, *, restarts: int = 1) -> None:
    """Trains, goes on, or finds it done. Row i learns from the i-th reward, where there are some."""
    first = rewards[0] if rewards else None
    built = build(by_own_files(config, path), reward=first)
    if (path / "config.json").is_file():
        _check_same(path, config)
        if _is_finished(path, built.schedule):
            return
        run, _ = open_run(path)
    else:
        run = create_run(path, {"config": dataclasses.asdict(config), "facts": built.facts}, files=config.files)
    algorithm = over_seeds(built.algorithm, config.num_seeds)
    if rewards:
        algorithm = _each_its_own(
            algorithm, [reward.params for reward in rewards], restarts, config.algorithm.trpo.initial_std
        )
    started = time.monotonic()
    _, result = train(algorithm, run, built.schedule, root_key(config.seed), resume=True, options=built.options)
    found = np.atleast_1d(result["eval/stochastic_return"])
    numbers = " ".join(f"{value:.1f}" for value in found)
    print(f"{path.relative_to(path.parents[1])}: true return {numbers}, {time.monotonic() - started:.0f} s", flush=True)


def _check_same(path: Path, config: RunConfig) -> None:
    before = read_config(path)
    try:
        refuse_changes(by_own_files(before, path), by_own_files(config, path))  # the folder may lie elsewhere than then
    except ValueError as error:
        raise ValueError(f"{path}: {error}; choose another --out") from None
    if before.total_steps != config.total_steps:
        raise ValueError(
            f"{path} was made with total_steps {before.total_steps}, not {config.total_steps}, which come of "
            f"--iterations; give those of before, or choose another --out"
        )


def _each_its_own(algorithm: Algorithm, params: list[Any], restarts: int, initial_std: float) -> Algorithm:
    """The same algorithm over seeds, seed i with the i-th reward; each `restarts` of them differ by how they begin."""
    stacked = params[0] if len(params) == 1 else jax.tree.map(lambda *leaves: np.stack(leaves), *params)
    turn = np.arange(len(params)) % restarts

    def init(key: jax.Array) -> Any:
        state = algorithm.init(key)
        actor = state.agent.actor
        if restarts > 1:
            start = GaussianActor.leaning(actor.params, jax.random.fold_in(key, 1), LEAN * (turn > 0))
            start = GaussianActor.with_std(start, np.where(turn % 2, WIDE_STD, initial_std))
            actor = actor._replace(params=start)
        return state._replace(agent=state.agent._replace(actor=actor), reward=jax.tree.map(jnp.asarray, stacked))

    return algorithm._replace(init=init)


def _collect(expert: Path, out: Path) -> None:
    """Episodes of the expert's last snapshots: the run's policy, then that after one update more, and so on."""
    config = read_config(expert)
    built = build(config)
    state, _ = load_checkpoint(open_run(expert)[0], jax.jit(built.algorithm.init)(root_key(config.seed)))
    environment, policy = built.environment, built.policy

    @jax.jit
    def play(actor: Actor, key: jax.Array) -> Any:
        episodes = start_rollout(environment, key, EPISODES_A_SNAPSHOT)
        act = act_by_sampling(policy, actor)
        _, steps, _ = rollout(environment, act, episodes, key, length=environment.episode_length)
        return steps._replace(action=policy.bound(steps.action))

    update = jax.jit(lambda state: built.algorithm.update(state, None)[0])
    observations, actions, rewards = [], [], []
    for snapshot in range(SNAPSHOTS):
        steps = jax.device_get(play(state.actor, jax.random.fold_in(root_key(config.seed), 2**30 + snapshot)))
        seen = np.concatenate([steps.observation, steps.next_observation[-1:]])
        observations += list(seen.swapaxes(0, 1))
        actions += list(steps.action.swapaxes(0, 1))
        rewards += list(steps.reward.T)
        if snapshot + 1 < SNAPSHOTS:
            state = update(state)
    demonstrations = from_episodes(observations, actions, rewards, [False] * len(actions))
    source = f"trpo, {SNAPSHOTS} snapshots to iteration {int(state.step)}, sampled actions"
    random = random_return(environment, root_key(config.seed))
    save(out, DemonstrationFile(demonstrations, environment.name, random, source), overwrite=True)


def _imitate(options: Options, method: str) -> None:
    _require(_demonstrations(options), "expert")
    _train(options.folder / "imitation" / method, _imitation_of(options, method))


def _demonstrations(options: Options) -> Path:
    return options.folder / "demonstrations.npz"


def _imitation_of(options: Options, method: str) -> RunConfig:
    return imitation_config(options.setting, method, _demonstrations(options), seeds=options.seeds)


def _retrain(options: Options, method: str) -> None:
    folder = options.folder
    reward, config = folder / "imitation" / method, _retraining_of(options, method)
    _require_finished(reward, "imitation")
    rewards = load_reward(reward, make_environment(config.environment))
    if len(rewards) != options.seeds:
        raise ValueError(f"{reward} has {len(rewards)} seeds, not the {options.seeds} asked for; choose another --out")
    each = [reward for reward in rewards for _ in range(options.restarts)]
    _train(folder / "retraining" / method, config, each, restarts=options.restarts)


def _retraining_of(options: Options, method: str) -> RunConfig:
    reward = options.folder / "imitation" / method
    return retraining_config(options.setting, reward, seeds=options.seeds, restarts=options.restarts)


def _require(path: Path, stage: Stage) -> None:
    if not path.exists():
        raise ValueError(f"{path} is missing; run stage {stage} first, or leave --stages out")


def _is_finished(path: Path, schedule: Schedule) -> bool:
    return max(saved_iterations(open_run(path)[0]), default=0) >= schedule.num_iterations


def _require_finished(path: Path, stage: Stage) -> None:
    _require(path / "config.json", stage)
    if not _is_finished(path, schedule_of(read_config(path))):
        raise ValueError(f"{path} has not come to its end; run stage {stage} first, or leave --stages out")


def main() -> None:
    """Exits 0 at the end, 2 for bad input, 1 for bad numbers or a full disk, 130 or 143 when stopped."""
    command.main(_main)


def _main() -> None:
    options = command.parse(Options, prog="python -m vdbjax.transfer", description=__doc__)
    try:
        run(options)
    except Stopped as stop:
        print("stopped and saved; the same command goes on", flush=True)
        sys.exit(stop.code)
    except (NonFiniteError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
