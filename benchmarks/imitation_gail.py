"""GAIL of the `imitation` library on a Gymnasium task; compare_imitation.py runs this in the library's own environment.

It writes a line a round to OUT/metrics.jsonl, with the names that vdbjax uses, and OUT/summary.json at the end. Nothing
of vdbjax is imported here.
"""

import argparse
import json
import time
from collections.abc import Callable
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from imitation.algorithms.adversarial.gail import GAIL
from imitation.data.types import Transitions
from imitation.policies.base import NormalizeFeaturesExtractor
from imitation.rewards.reward_nets import BasicRewardNet
from imitation.util import logger
from imitation.util.networks import RunningNorm
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

PACKAGES = ("imitation", "torch", "stable_baselines3", "gymnasium", "mujoco", "numpy")
VECTORS = {"dummy": DummyVecEnv, "subproc": SubprocVecEnv}


def defaults() -> dict[str, Any]:
    """What the library's own training command takes where nothing else is said: Stable-Baselines3's PPO, and GAIL's."""
    return {
        "round": 2048,
        "learner": {"learning_rate": 3e-4, "batch_size": 64, "n_epochs": 10, "ent_coef": 0.0},
        "gail": {"demo_batch_size": 1024, "n_disc_updates_per_round": 4, "gen_replay_buffer_capacity": 2048},
    }


def tuned() -> dict[str, Any]:
    """What the library's authors found for their own Hopper (10 million steps), read from the installed package."""
    folder = resources.files("imitation") / "scripts" / "config" / "tuned_hps"
    found = json.loads((folder / "gail_seals_hopper_best_hp_eval.json").read_text())
    policy = {
        "activation_fn": torch.nn.ReLU,
        "features_extractor_class": NormalizeFeaturesExtractor,
        "features_extractor_kwargs": {"normalize_class": RunningNorm},
        "net_arch": found["policy"]["policy_kwargs"]["net_arch"][0],
    }
    return {
        "round": found["rl"]["batch_size"],
        "learner": {**found["rl"]["rl_kwargs"], "policy_kwargs": policy},
        "gail": found["algorithm_kwargs"],
    }


SETTINGS: dict[str, Callable[[], dict[str, Any]]] = {"defaults": defaults, "tuned": tuned}


def main() -> None:
    """Trains, evaluates and writes."""
    options = _options()
    torch.set_num_threads(options.threads)
    settings = SETTINGS[options.settings]()
    venv = _environments(options.task, options.num_envs, options.seed, vector=VECTORS[options.vector])
    learner = PPO(
        "MlpPolicy",
        venv,
        n_steps=settings["round"] // options.num_envs,
        seed=options.seed,
        device="cpu",
        **settings["learner"],
    )
    trainer = GAIL(
        demonstrations=_demonstrations(options.demonstrations, at_least=settings["gail"]["demo_batch_size"]),
        venv=venv,
        gen_algo=learner,
        reward_net=BasicRewardNet(venv.observation_space, venv.action_space, normalize_input_layer=RunningNorm),
        allow_variable_horizon=True,  # hopper's episodes end where it falls, here as in vdbjax
        custom_logger=logger.configure(options.out / "log", []),
        **settings["gail"],
    )
    reached, capped = _train(trainer, options)
    summary = {
        "settings": repr(settings),
        "env_steps": reached,
        "stopped_by_time": capped,
        "versions": {name: metadata.version(name) for name in PACKAGES},
        **_final_returns(learner, options),
    }
    (options.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    venv.close()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--demonstrations", type=Path, required=True, help=".npz of obs, acts, next_obs, dones")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--task", default="Hopper-v5", help="Gymnasium id")
    parser.add_argument("--settings", choices=SETTINGS, default="defaults", help="hyperparameters")
    parser.add_argument("--num-envs", type=int, default=8, help="environments")
    parser.add_argument("--vector", choices=VECTORS, default="dummy", help="one process, or one an environment")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--seed", type=int, default=0, help="seed")
    parser.add_argument("--steps", type=int, default=1_000_000, help="environment steps, rounded down to whole rounds")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after the round in which they pass")
    parser.add_argument("--evaluations", type=int, default=10, help="evaluations on the true return; 0 for none at all")
    parser.add_argument("--eval-episodes", type=int, default=10, help="episodes of each")
    parser.add_argument("--final-episodes", type=int, default=50, help="episodes of the evaluation at the end")
    return parser.parse_args()


def _environments(task: str, count: int, seed: int, *, vector: Any = DummyVecEnv) -> Any:
    venv = vector([lambda: Monitor(gymnasium.make(task)) for _ in range(count)])
    venv.seed(seed)
    return venv


def _demonstrations(path: Path, *, at_least: int) -> Transitions:
    """The transitions, repeated until they fill the batch that the library insists on drawing without replacement."""
    arrays = dict(np.load(path))
    copies = -(-at_least // len(arrays["acts"]))
    repeated = {name: np.concatenate([array] * copies) for name, array in arrays.items()}
    return Transitions(infos=np.array([{}] * len(repeated["acts"])), **repeated)


def _train(trainer: GAIL, options: argparse.Namespace) -> tuple[int, bool]:
    """(Environment steps done, whether time ran out). `seconds` count evaluations too, as vdbjax's do."""
    steps, rounds = trainer.gen_train_timesteps, options.steps // trainer.gen_train_timesteps
    if rounds < 1:
        raise SystemExit(f"error: --steps ({options.steps}) must be at least one round ({steps})")
    started = time.monotonic()
    with (options.out / "metrics.jsonl").open("w") as lines:
        for done in range(1, rounds + 1):
            trainer.train(steps)
            capped = time.monotonic() - started > 60 * options.minutes
            line: dict[str, Any] = {"iteration": done, "env_steps": done * steps}
            due = done * options.evaluations // rounds > (done - 1) * options.evaluations // rounds
            if due or (capped and options.evaluations):
                returns = _returns(trainer.gen_algo, options, options.eval_episodes, seed=1000)
                line["eval/return"] = float(np.mean(returns))
            line["seconds"] = time.monotonic() - started
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            if capped:
                break
    return done * steps, capped


def _returns(
    learner: Any, options: argparse.Namespace, episodes: int, *, seed: int, sampled: bool = False
) -> list[float]:
    venv = _environments(options.task, min(episodes, 10), options.seed + seed)
    returns, _ = evaluate_policy(
        learner.policy, venv, n_eval_episodes=episodes, deterministic=not sampled, return_episode_rewards=True
    )
    venv.close()
    return returns


def _final_returns(learner: PPO, options: argparse.Namespace) -> dict[str, list[float]]:
    if not options.evaluations:
        return {}
    kinds = {"returns": False, "stochastic_returns": True}
    return {
        name: _returns(learner, options, options.final_episodes, seed=2000, sampled=sampled)
        for name, sampled in kinds.items()
    }


if __name__ == "__main__":
    main()
