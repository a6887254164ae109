# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # VAIL: a hopper that learns to run from four trajectories
#
# Variational adversarial imitation learning (Peng et al. 2019, section 4.2) on Gymnasium's Hopper-v5. A discriminator
# tells the expert's state-action pairs from the policy's, but only through a code that may carry `Ic` nats; the policy
# is rewarded for what the discriminator takes for the expert's.
#
# On a GPU or TPU runtime the physics run in MJX beside the learning; on a CPU they run in MuJoCo's C threads. Nothing
# else changes.

# %%
import importlib.util
import subprocess
import sys
from pathlib import Path

if importlib.util.find_spec("vdbjax") is None:
    source = ".." if Path("../pyproject.toml").exists() else "vdbjax"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e" if source == ".." else "-q", source], check=True)

# %%
import dataclasses
import os
import tempfile

import jax
from IPython.display import HTML, Image, display

from vdbjax.build import build
from vdbjax.data.demonstrations import embedded, episode_returns
from vdbjax.evaluation.plots import draw_curves
from vdbjax.recipes import find_recipe
from vdbjax.run_curves import curves_of
from vdbjax.training.devices import root_key
from vdbjax.training.loop import train
from vdbjax.training.run_dir import create_run

FAST = os.environ.get("VDBJAX_FAST") == "1"
ON_CPU = jax.default_backend() == "cpu"
print(f"{jax.device_count()} x {jax.devices()[0].device_kind}")

# %% [markdown]
# ## The demonstrations
# Eleven episodes of an expert trained by PPO lie in the package. Four are drawn, and of those every 20th transition is
# kept: about 200 state-action pairs, on which behavioural cloning alone fails.

# %%
demonstrations = embedded("hopper")
returns = episode_returns(demonstrations.demonstrations)
print(f"{len(returns)} episodes, return {returns.mean():.0f} +- {returns.std():.0f}; {demonstrations.source}")

# %% [markdown]
# ## Training
# A recipe is a frozen config. `build` makes of it three pure functions (`init`, `update`, `evaluate`), and `train` is
# the loop that the command line uses too: it logs, evaluates, checkpoints, and stops cleanly when interrupted.

# %%
num_envs, total_steps = (32, 600_000) if ON_CPU else (4096, 8_000_000)
config = dataclasses.replace(find_recipe("vail"), num_envs=num_envs, total_steps=total_steps)
if FAST:
    learner = dataclasses.replace(config.algorithm.ppo, num_epochs=1, rollout_length=16, minibatch_size=32)
    algorithm = dataclasses.replace(config.algorithm, ppo=learner)
    config = dataclasses.replace(
        config, num_envs=4, total_steps=128, evaluations=1, eval_episodes=1, algorithm=algorithm
    )
built = build(config)
facts = {"config": dataclasses.asdict(config), "facts": built.facts}
run = create_run(Path(tempfile.mkdtemp()) / "vail-hopper", facts, files=config.files)
state, result = train(built.algorithm, run, built.schedule, root_key(config.seed))
print({name: round(float(value), 3) for name, value in result.items()})

# %% [markdown]
# ## What happened
# The KL starts far above `Ic` and is brought down to it by the multiplier beta; the discriminator's accuracy stays well
# below 1, so that its reward keeps a slope.

# %%
shown = ("eval/score", "bottleneck/kl_nats", "bottleneck/beta", "discriminator/policy_accuracy")
draw_curves([curves_of(run.path)], run.path / "curves.png", metrics=shown)
display(Image(str(run.path / "curves.png"), width=800))

# %% [markdown]
# ## The policy at work

# %%
clip = run.path / "clip.html"
command = [sys.executable, "-m", "vdbjax.render", str(run.path), "--out", str(clip), "--seconds", "1" if FAST else "4"]
command += ["--width", "320", "--height", "240"]
drawn = subprocess.run(command, capture_output=True, text=True)
display(HTML(clip.read_text()) if drawn.returncode == 0 else drawn.stderr)
