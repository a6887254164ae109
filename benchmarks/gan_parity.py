"""Makes `tests/gan_step.npz`: tiny networks' weights, images and noise from here, and a step of them by PyTorch.

python benchmarks/gan_parity.py PYTHON
"""

import dataclasses
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from tyro.conf import Positional, arg

from vdbjax import command
from vdbjax.bottleneck import BottleneckConfig
from vdbjax.images import gan

OUT = Path(__file__).parents[1] / "tests" / "gan_step.npz"
SIZES: dict[str, Any] = {"size": 8, "filters": 4, "max_filters": 8, "latent": 8, "noise": 6, "learning_rate": 1e-4}
BATCH, KEY = 4, 7
VDB = BottleneckConfig(latent_size=SIZES["latent"], info_constraint=0.1, beta_init=0.3)
PAPER = gan.Config(
    **{name: SIZES[name] for name in ("filters", "max_filters", "learning_rate")},
    bottleneck=VDB,
    r1=10.0,
    noise_size=SIZES["noise"],
    batch_size=BATCH,
)
CASES = {
    "paper": PAPER,
    "released": dataclasses.replace(
        PAPER, r1=20.0, generator_code="draw", kl="per-place", head_activation="leaky_relu"
    ),
    "gan-gp": dataclasses.replace(PAPER, bottleneck=None),
}


@dataclass(frozen=True)
class Options:
    """What to run the step with."""

    python: Positional[Annotated[Path, arg(metavar="PYTHON")]]
    """An interpreter with torch and NumPy."""


def inputs() -> dict[str, Any]:
    """Weights by name, images, the generator's noise, and the codes' noise as the keys of `KEY` give it."""
    draw, side = np.random.default_rng(0), SIZES["size"]
    keys = jax.random.split(jax.random.key(KEY), 4)
    found: dict[str, np.ndarray] = {
        "real": draw.uniform(-1, 1, (BATCH, side, side, 3)).astype(np.float32),
        "noise": draw.normal(size=(2, BATCH, SIZES["noise"])).astype(np.float32),
        "codes": np.stack([jax.random.normal(key, (BATCH, 4, 4, SIZES["latent"])) for key in keys[:3]]),
        "sizes": np.array(json.dumps(SIZES)),
        "cases": np.array(json.dumps({name: options(config) for name, config in CASES.items()})),
    }
    for name, config in CASES.items():
        model = gan.build_model(config, (side, side, 3))
        shapes = jax.eval_shape(model.init, jax.random.key(0), None)
        for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]:
            scale = 0.5 / np.sqrt(np.prod(leaf.shape[:-1]))  # far from torch's start, to see each term
            found[f"{name}/{'/'.join(part.key for part in path)}"] = (scale * draw.normal(size=leaf.shape)).astype("f4")
    return found


def options(config: gan.Config) -> dict:
    """What the other side needs to know."""
    vdb = config.bottleneck
    return {
        "r1": config.r1,
        "beta": vdb and vdb.beta_init,
        "constraint": vdb and vdb.info_constraint,
        "kl": config.kl,
        "head_activation": config.head_activation,
        "draws": config.generator_code == "draw",
    }


def main(options: Options) -> None:
    """Writes the file."""
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "given.npz"
        np.savez(given, **inputs())
        subprocess.run([options.python, Path(__file__).with_name("gan_torch.py"), "numbers", given, OUT], check=True)


if __name__ == "__main__":
    command.main(lambda: main(command.parse(Options, prog="gan_parity.py", description=__doc__)))
