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
# # VAIRL: a reward that still holds in another maze
#
# Adversarial inverse reinforcement learning recovers a reward from demonstrations. Behind the variational bottleneck
# (Peng et al. 2019, section 5.2) it becomes smooth enough to teach a new policy in a maze whose opening is on the other
# side. Everything runs in closed form: a particle, some walls, millions of control steps a second.

# %%
import importlib.util
import subprocess
import sys
from pathlib import Path

if importlib.util.find_spec("vdbjax") is None:
    source = ".." if Path("../pyproject.toml").exists() else "vdbjax"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e" if source == ".." else "-q", source], check=True)

# %%
import os
import tempfile
import time

import jax
import jax.numpy as jnp
from IPython.display import Image, Markdown, display

from vdbjax import transfer
from vdbjax.envs.frame import Frame
from vdbjax.envs.maze import MAZES, advance

FAST = os.environ.get("VDBJAX_FAST") == "1"
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The maze, four thousand times
# A point mass of 113 g, damped, pushed with at most 1 N, and MuJoCo's own soft contacts written out for walls along the
# axes.

# %%
num_envs, num_steps = (64, 20) if FAST else (4096, 500)
maze = MAZES["c"]


@jax.jit
def play(key):
    place = jnp.tile(jnp.array([maze.start]), (num_envs, 1))

    def step(frame, key):
        return advance(maze, frame, jax.random.uniform(key, place.shape, minval=-1.0)), None

    still = jnp.zeros_like(place)
    return jax.lax.scan(step, Frame(place, still, still, {}), jax.random.split(key, num_steps))[0].qpos


play(jax.random.key(0)).block_until_ready()
started = time.perf_counter()
play(jax.random.key(1)).block_until_ready()
print(f"{num_envs * num_steps / (time.perf_counter() - started) / 1e6:.1f} million control steps a second")

# %% [markdown]
# ## Expert, reward, new policy
# TRPO trains an expert in the training maze; VAIRL with a gradient penalty recovers a reward from its episodes there;
# TRPO trains new policies on that reward in the transfer maze. The true reward is used for scoring only. The same as
# `python -m vdbjax.transfer --maze c --methods vairl-gp --seeds 2 --restarts 1`.

# %%
small = {"iterations": 6, "num_envs": 4, "seeds": 1, "restarts": 1} if FAST else {"seeds": 2, "restarts": 1}
options = transfer.Options(maze="c", methods=("vairl-gp",), out=folder / "c", **small)
transfer.run(options)

# %%
display(Markdown((folder / "c" / "table.md").read_text()))

# %% [markdown]
# ## What was recovered
# On the left the true reward, minus the distance to the goal (green). Then the recovered rewards, each with the paths
# of the policy that learnt from it: round the barrier's other end, where no demonstration ever went.

# %%
display(Image(str(folder / "c" / "vairl-gp.png"), width=700))

# %% [markdown]
# The run folders can be used again: `python -m vdbjax.reward RUN --map out.png` draws a reward, and
# `python -m vdbjax.train trpo --reward RUN --env maze/c-transfer` trains on it.
