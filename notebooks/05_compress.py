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
# # A flow compresses images, and every pixel comes back
#
# A flow gives an image a likelihood; *local bits-back coding* (Ho, Lohn and Abbeel 2019) turns it into a code of the
# same length. Here a small Flow++ is trained, and other images are compressed with it into one file, beside PNG and
# WebP.
#
# With `VDBJAX_DATA` set to a folder that holds CIFAR-10 as `cifar10/exact_train.npz` and `cifar10/exact_test.npz` these
# are the images; without, they are drawn here. 400 steps are made, and 3,600 took `flowpp-small` an hour on two cores.

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
DATA = Path(os.environ.get("VDBJAX_DATA", "absent")) / "cifar10"
folder = Path(tempfile.mkdtemp())


def run(*typed):
    """A command of the package, and what it prints."""
    done = subprocess.run([sys.executable, "-m", *map(str, typed)], cwd=folder, capture_output=True, text=True)
    print(done.stdout[-3000:], "" if done.returncode == 0 else done.stderr[-3000:])


# %% [markdown]
# ## The images
# Drawn ones are discs of two colours in front of a shade, with a little noise.


# %%
def drawn(count, side, seed):
    """Images [count, side, side, 3] uint8."""
    draw = np.random.default_rng(seed)
    row, column = np.mgrid[:side, :side] / side
    centre, radius = draw.uniform(0, 1, (count, 2, 1, 1)), draw.uniform(0.1, 0.5, (count, 1, 1))
    inside = (row - centre[:, 0]) ** 2 + (column - centre[:, 1]) ** 2 < radius**2
    colour = draw.uniform(20, 230, (2, count, 1, 1, 3))
    shade = 30 * (row + column)[None, :, :, None]
    images = np.where(inside[..., None], colour[0], colour[1]) + shade + draw.normal(0, 3, (count, side, side, 3))
    return np.clip(images, 0, 255).astype(np.uint8)


if DATA.is_dir() and not FAST:
    learnt, others = DATA / "exact_train.npz", DATA / "exact_test.npz"
else:
    learnt, others, side = folder / "learnt.npz", folder / "others.npz", 8 if FAST else 16
    np.savez(learnt, images=drawn(200 if FAST else 4_000, side, seed=0))
    np.savez(others, images=drawn(12 if FAST else 200, side, seed=1))

# %% [markdown]
# ## Training
# `flowpp-small` takes about a second a step on two cores for 32 x 32 pixels. A few hundred steps pass PNG and WebP.

# %%
iterations = 3 if FAST else 400
tiny = (
    "--filters 4 --blocks 1 --mixtures 2 --batch-size 8 --init-images 16 --validation-images 8 --layers depth columns"
)
run(
    *("vdbjax.train", "flowpp-small", "--data", learnt, "--out", "flow", "--iterations", iterations),
    *("--evaluations", 1, *(tiny.split() if FAST else ())),
)
display(Image(str(folder / "flow" / "samples" / f"{iterations:07}.png")))

# %% [markdown]
# ## Compressing
# *Theoretical* is the bound of the images' likelihood with the very noise that was drawn, *net* what their code takes,
# *file* what lies on the disk, with names, checksums and header. The first images pay for the noise of those after
# them: they go into the same code by a plain codec, so that no bits are brought along.

# %%
run("vdbjax.compress", others, "--model", "flow", "--out", "others.vdbx", "--compare")
run("vdbjax.compressed", "info", "others.vdbx")

# %% [markdown]
# ## And back
# Another process reads the file. It writes nothing unless every picture is exactly as its checksum says.

# %%
run("vdbjax.decompress", "others.vdbx", "--out", "back", "--model", "flow")

# %%
from vdbjax.data.picture_files import read_pictures

again = np.stack([picture.pixels for picture in read_pictures([folder / "back"]).pictures])
print("all equal:", np.array_equal(again, np.load(others)["images"]))
