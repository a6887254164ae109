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
# # VGAN: a GAN whose discriminator sees through a narrow channel
#
# A discriminator that tells every image apart has nothing left to teach. VGAN (Peng et al. 2019, section 5.3) lets it
# see a code of at most `Ic` nats an image, and adapts the price `beta` of a nat until the budget is held. Here a plain
# GAN and VGAN-GP, which has a gradient penalty as well, learn the same images for the same number of iterations.
#
# With `VDBJAX_DATA` set to a folder that holds CIFAR-10 as `cifar10/exact_train.npz` these are the images; without,
# they are discs and squares drawn here, small enough for a few minutes on two cores.

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
from IPython.display import Image, Markdown, display

FAST = os.environ.get("VDBJAX_FAST") == "1"
DATA = Path(os.environ.get("VDBJAX_DATA", "absent")) / "cifar10" / "exact_train.npz"
folder = Path(tempfile.mkdtemp())


def run(*typed):
    """A command of the package, and what it prints last."""
    done = subprocess.run([sys.executable, "-m", *map(str, typed)], cwd=folder, capture_output=True, text=True)
    print(done.stdout[-1500:], "" if done.returncode == 0 else done.stderr[-3000:])


# %% [markdown]
# ## The images
# Discs (label 0) and squares (label 1) of any colour, size and place, on a plain ground.


# %%
def drawn(count, side, seed):
    """Images [count, side, side, 3] uint8 and their labels [count]."""
    draw = np.random.default_rng(seed)
    row, column = np.mgrid[:side, :side] / side
    centre, radius = draw.uniform(0.3, 0.7, (count, 2, 1, 1)), draw.uniform(0.15, 0.3, (count, 1, 1))
    away = np.abs(row - centre[:, 0]), np.abs(column - centre[:, 1])
    labels = draw.integers(0, 2, count)
    inside = np.where(labels[:, None, None] == 0, np.hypot(*away), np.maximum(*away)) < radius
    figure, ground = draw.integers(0, 256, (2, count, 1, 1, 3))
    return np.where(inside[..., None], figure, ground).astype(np.uint8), labels


if DATA.is_file() and not FAST:
    images = DATA
else:
    images = folder / "images.npz"
    pixels, labels = drawn(300 if FAST else 4_000, 8 if FAST else 16, seed=0)
    np.savez(images, images=pixels, labels=labels)

# %% [markdown]
# ## A measure of images
# How near the generated images are to real ones is told by the Fréchet distance between their features. Inception's are
# the standard; where its weights are not at hand, a small classifier of the very images gives some. Its distance is
# called FD, never FID, and compares runs with one another only.

# %%
tiny = "--filters 8 16 --batch-size 16 --validation-images 32"
run(
    *("vdbjax.train", "cifar-features", "--data", images, "--out", "features", "--evaluations", 1),
    *("--iterations", 2 if FAST else 1_000, *(tiny.split() if FAST else ())),
)

# %% [markdown]
# ## Two GANs, one budget
# The paper's step of beta, 1e-5, is for its 750,000 iterations; a short run takes a larger one.

# %%
methods = ("vgan-gp",) if FAST else ("gan", "vgan-gp")
sizes = {"iterations": 2, "images": 64, "filters": 1, "batch-size": 4} if FAST else {}
sizes = {"iterations": 2_000, "images": 2_000, "filters": 8, "batch-size": 32} | sizes
run(
    *("vdbjax.gan_table", "--data", images, "--extractor", "features", "--methods", *methods),
    *("--evaluations", 1 if FAST else 6, "--learning-rate", 2e-4, "--dual-step-size", 3e-3, "--damping", 0.5),
    *(text for name, value in sizes.items() for text in (f"--{name}", value)),
)
display(Markdown((folder / "gan_table" / "gan_table.md").read_text()))

# %% [markdown]
# ## What happened
# Codes start near the prior and then move away from it, until beta rises and brings the KL down; beta falls back, and
# the KL swings widely about `Ic` = 0.1 nats. A discriminator that may know so little is hardly ever better than chance,
# while that of the plain GAN swings between extremes.

# %%
display(Image(str(folder / "gan_table" / "gan_table.png"), width=900))

# %% [markdown]
# ## What they draw
# The last samples of each, always from the same noise; and a walk from one image of VGAN-GP to another.

# %%
for method in methods:
    print(method)
    display(Image(str(max((folder / "runs" / "gan_table" / f"{method}-0" / "samples").glob("*.png"))), width=400))

# %%
run("vdbjax.sample", "runs/gan_table/vgan-gp-0", "--out", "strips.png", "--num", 4, "--interpolate", 8)
display(Image(str(folder / "strips.png"), width=500))
