"""A training step of a hierarchical VAE: seconds to compile, images a second, memory; and the same in PyTorch.

Ours is measured twice: with equal layers as a scan, which is what the recipe has and what compiles fast, and laid out
one after the other, which is what runs fast on a CPU. Each, and PyTorch, runs in a process of its own, for the peak of
its memory. Processor time is given too, as other work on the machine disturbs the clock.

    python benchmarks/vae_step.py
"""

import dataclasses
import json
import multiprocessing
import resource
import subprocess
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clock import least, timed
from environments import clean_environment, find_interpreter
from machine import begin

from vdbjax import command, limits
from vdbjax.image_build import num_parameters
from vdbjax.image_recipes import find_image_recipe
from vdbjax.images import vdvae
from vdbjax.training.memory import keep_memory, ready
from vdbjax.types import Pictures

SCRIPT = Path(__file__).parent / "vae_torch.py"
LARGEST_COMPILE = 300.0  # seconds, for the recipe as it is


@dataclass(frozen=True)
class Options:
    """What to measure."""

    recipe: str = "vdvae-svhn"
    """Recipe of a VAE with a Gaussian; images are as large as its highest resolution."""
    batch_size: int = 4
    """Images a step."""
    repeats: int = 3
    """Steps timed, after one that is not; the least counts."""
    unrolled: bool = True
    """Measure the layers laid out one after the other as well."""
    threads: int = 2
    """Threads of PyTorch; ours takes all cores. On a machine that others use, those that wait for one another count as
    processor time: take 1."""
    python: Path | None = None
    """Interpreter that has torch. None: an environment is made under the working folder."""
    torch_index: str | None = None
    """Package index to take torch from, where the default one would give a CUDA build."""
    workdir: Path = Path("~/.cache/vdbjax/vae_step")
    """Where the environment lies."""
    out: Path | None = None
    """File to write. None: benchmarks/results/vae_step_DEVICE.json."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        limits.at_least(1, self, "--batch-size", "--repeats", "--threads")


def main(options: Options) -> None:
    """Measures, prints a line a system and writes the file."""
    config = find_image_recipe(options.recipe).algorithm
    if not isinstance(config, vdvae.Config) or config.gamma is None:
        raise ValueError(f"recipe {options.recipe} is no VAE with a Gaussian; take one such as vdvae-svhn")
    config = dataclasses.replace(config, batch_size=options.batch_size)
    python = find_interpreter(
        options.python,
        options.workdir.expanduser() / "venv",
        script=SCRIPT,
        requirements=(("numpy",),),
        torch_index=options.torch_index,
    )
    report = begin("vae_step", options, options.out)
    rows = [{"what": "PyTorch", **_torch(python, config, options)}]
    print(_line(rows[-1]), flush=True)
    for what, scan in (("ours, scan", True), ("ours, unrolled", False))[: 1 + options.unrolled]:
        rows.append({"what": what, **_apart(dataclasses.replace(config, scan=scan), options.repeats)})
        print(_line(rows[-1]), flush=True)
    theirs, ours = rows[0], rows[1:]
    result: dict[str, Any] = {
        "layers": sum(config.layers),
        "rows": rows,
        "same_parameters": all(row["parameters"] == theirs["parameters"] for row in ours),
        "scan_compiles_in_time": ours[0]["compile_wall"] <= LARGEST_COMPILE,
        "images_a_second_to_torch": {row["what"]: theirs["wall"] / row["wall"] for row in ours},
        "processor_to_torch": {row["what"]: row["processor"] / theirs["processor"] for row in ours},
        "peak_memory_to_torch": {row["what"]: row["peak_bytes"] / theirs["peak_bytes"] for row in ours},
    }
    report.write(result)


def _torch(python: Path, config: vdvae.Config, options: Options) -> dict[str, Any]:
    named = ("resolutions", "layers", "encoder_blocks", "width", "bottleneck_width", "latents")
    sizes = {name: getattr(config, name) for name in named} | {"channels": 3}
    flags = {"batch-size": options.batch_size, "steps": options.repeats, "threads": options.threads}
    line: list[Any] = [
        python,
        SCRIPT,
        "--sizes",
        json.dumps(sizes),
        *(f"--{name}={value}" for name, value in flags.items()),
    ]
    done = subprocess.run(line, capture_output=True, text=True, env=clean_environment())
    if done.returncode:
        raise ValueError(f"{SCRIPT.name} failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return {**json.loads(done.stdout), "batch_size": options.batch_size}


def _apart(config: vdvae.Config, repeats: int) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(ours, config, repeats).result()


def ours(config: vdvae.Config, repeats: int) -> dict[str, Any]:
    """Numbers of this process, which should have done nothing before."""
    keep_memory()
    jax.config.update("jax_enable_compilation_cache", False)
    side = config.resolutions[-1]
    model = vdvae.build_model(config, (side, side, 3))
    draw = np.random.default_rng(0)
    pictures = Pictures(draw.integers(0, 256, (config.batch_size, side, side, 3)).astype(np.uint8))
    algorithm = vdvae.make(config, model, first=pictures, validation=pictures, num_iterations=1)
    state = jax.block_until_ready(jax.jit(algorithm.init)(jax.random.key(0)))
    built: list[Any] = []
    step = jax.jit(algorithm.update, donate_argnums=0)
    compiling = timed(lambda: built.append(step.lower(state, pictures).compile()))
    skipped = []

    def once() -> None:
        nonlocal state
        state, metrics = jax.block_until_ready(built[0](state, ready(pictures)))
        skipped.append(float(metrics["vae/skipped"]))

    once()
    stepping = least(repeats, once)
    return {
        "parameters": num_parameters(model),
        "gradients_finite": not any(skipped),  # of the first 50 steps those alone are skipped that are not
        "compile_wall": compiling.wall,
        "compile_processor": compiling.processor,
        "wall": stepping.wall,
        "processor": stepping.processor,
        "peak_bytes": peak_bytes(),
        "temporary_bytes": built[0].memory_analysis().temp_size_in_bytes,
        "batch_size": config.batch_size,
    }


def peak_bytes() -> int:
    """Of the accelerator's memory, or of the host's where there is none."""
    if statistics := jax.devices()[0].memory_stats():
        return statistics["peak_bytes_in_use"]
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _line(row: dict[str, Any]) -> str:
    compiled = f"compiled in {row['compile_wall']:.0f} s, " if "compile_wall" in row else ""
    finite = "finite" if row["gradients_finite"] else "NOT FINITE"
    return (
        f"{row['what']}: {compiled}{row['batch_size'] / row['wall']:.3g} images/s, {row['processor']:.3g} s of "
        f"processor time a step, {row['peak_bytes'] / 2**20:,.0f} MiB at most, gradients {finite}, "
        f"{row['parameters']:,} parameters"
    )


if __name__ == "__main__":
    command.main(lambda: main(command.parse(Options, prog="vae_step.py", description=__doc__)))
