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
# # The bits that matter
#
# A VAE that maximises the likelihood spends nearly all of its bits on what nobody sees. *Mind Your Bits and Errors*
# (2021) asks for a distortion instead: a hierarchical VAE is held at a squared error gamma of an image, by a multiplier
# lambda, and finds the lowest rate for that. A second VAE, which sees what the first one makes of an image, then adds
# the rest.
#
# With `VDBJAX_DATA` set to a folder that holds MNIST as `mnist/t10k-images-idx3-ubyte.gz` these are the images;
# without, they are drawn here.

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

import numpy as np
from IPython.display import Image, display

FAST = os.environ.get("VDBJAX_FAST") == "1"
MNIST = Path(os.environ.get("VDBJAX_DATA", "absent")) / "mnist" / "t10k-images-idx3-ubyte.gz"
folder = Path(tempfile.mkdtemp())


def run(*typed):
    """A command of the package, and the end of what it prints."""
    done = subprocess.run([sys.executable, "-m", *map(str, typed)], cwd=folder, capture_output=True, text=True)
    print(done.stdout[-1000:] if done.returncode == 0 else done.stderr[-3000:])


# %% [markdown]
# ## The images
# MNIST's digits at 14 x 14, so that a model trains in minutes on one core. Drawn ones are rings.


# %%
def rings(count, side, seed):
    """Images [count, side, side, 1] uint8."""
    draw = np.random.default_rng(seed)
    row, column = np.mgrid[:side, :side] / side
    centre, radius = draw.uniform(0.3, 0.7, (count, 2, 1, 1)), draw.uniform(0.15, 0.35, (count, 1, 1))
    distance = np.hypot(row - centre[:, 0], 1.5 * (column - centre[:, 1])) - radius
    return (255 * np.exp(-((distance / 0.08) ** 2)))[..., None].astype(np.uint8)


if MNIST.is_file() and not FAST:
    data = MNIST
else:
    data = folder / "rings.npz"
    np.savez(data, images=rings(400 if FAST else 8_000, 8 if FAST else 14, seed=0))

# %% [markdown]
# ## Held at a distortion
# Minimise (1 - lambda) R + lambda D over the networks, and move lambda by D - gamma, so that it rises while the error D
# is too large. It starts at 0.9999: first the error falls far below the target, at a rate of hundreds of nats, then
# lambda lets go, and the rate falls while the error stays at gamma.

# %%
gammas = (4,) if FAST else (2, 5, 8)
iterations = 4 if FAST else 2_500
if FAST:
    size = "--resolutions 8 --layers 1 --encoder-blocks 1 --width 4 --bottleneck-width 4 --latents 2"
else:
    size = "--size 14 --resolutions 1 7 14 --layers 1 2 2 --encoder-blocks 1 1 1 --width 16 --bottleneck-width 8"
    size += " --latents 4 --validation-images 1000"
shared = (*size.split(), "--data", data, "--batch-size", 16, "--dual-step-size", 2e-3, "--evaluations", 1)
shared += ("--iterations", iterations)

for gamma in gammas:
    run("vdbjax.train", "vdvae-small", *shared, "--gamma", gamma, "--out", f"gamma-{gamma}")

# %% [markdown]
# ## A second stage
# It is conditioned on what the first one makes of an image, starts as that, and is held at a smaller error.

# %%
first, target = (gammas[0], 1) if FAST else (5, 2)
run(
    *("vdbjax.train", "two-stage-small", *shared, "--primary", f"gamma-{first}"),
    *("--gamma", target, "--out", "second"),
)

# %%
run("vdbjax.vae_figures", *(f"gamma-{gamma}" for gamma in gammas), "second", "--out", "figures")
display(Image(str(folder / "figures" / "over_iterations.png")))

# %% [markdown]
# ## What is kept
# Images that no model was trained on, and what comes back of them. The less error is allowed, the more nats it takes,
# and the harder it is for the prior to draw latents that look like those of images: samples need not become better. Of
# two stages the samples are the first one's, with details added to them.

# %%
display(Image(str(folder / "figures" / "reconstructions.png")))
display(Image(str(folder / "figures" / "samples.png")))

# %% [markdown]
# Yet the ELBO asks for ever more: every halving of the error is worth half a bit for each number of the image, far
# above what it costs in rate. Of two stages both rates count in the bound.

# %%
display(Image(str(folder / "figures" / "against_distortion.png")))
display(Image(str(folder / "figures" / "two_stages.png")))
