"""Images a second that GANs train on, beside PyTorch with the same networks, batch and steps on the same machine.

An iteration is a step of the discriminator, R1 included, of beta where there is a bottleneck, of the generator and of
its running average. The two take turns, so that a disturbance does not hit one of them alone. PyTorch runs in an
environment of its own, made the first time, with as many threads and in the faster of its two memory layouts.
As in training, ours spread each batch over all devices.

    python benchmarks/gan_throughput.py
"""

import dataclasses
import json
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from environments import clean_environment, find_interpreter
from machine import begin

from vdbjax import command, limits
from vdbjax.compiler import compiler_options
from vdbjax.envs.engine_c import count_threads
from vdbjax.gan_recipes import FIGURE_8, of_width
from vdbjax.image_build import with_batches_over_devices
from vdbjax.images import gan
from vdbjax.training.devices import (
    layout_of,
    on_every_device,
    root_key,
    start_processes,
    use_all_devices,
)
from vdbjax.training.memory import keep_memory, ready
from vdbjax.types import Pictures

SCRIPT = Path(__file__).with_name("gan_torch.py")
SIDE = 32
LAYOUTS = {"channels first": (), "channels last": ("--channels-last",)}


@dataclass(frozen=True)
class Options:
    """What to measure."""

    methods: tuple[Literal["gan-gp", "vgan-gp"], ...] = ("gan-gp", "vgan-gp")
    """Recipes: without and with the bottleneck."""
    filters: tuple[int, ...] = (32,)
    """Channels at the images' own size, each a row; 32 is the paper's. Other widths, code and noise in proportion."""
    batch_size: int = 64
    """Images an iteration, real ones and fake ones each."""
    iterations: int = 5
    """Iterations of a turn."""
    turns: int = 5
    """Turns of each."""
    python: Path | None = None
    """Interpreter that has torch and NumPy. None: an environment is made under the working folder."""
    torch_index: str | None = None
    """Package index to take torch from, where the default one would give a CUDA build that is not wanted."""
    workdir: Path = Path("~/.cache/vdbjax/gan_throughput")
    """Where the environment lies."""
    out: Path | None = None
    """File to write. None: benchmarks/results/gan_throughput_DEVICE.json."""

    def __post_init__(self) -> None:
        """Rejects values that cannot work."""
        limits.not_empty(self, "--methods", "--filters")
        limits.at_least(1, self, "--filters", "--batch-size", "--iterations", "--turns")


def main(options: Options) -> None:
    """Measures, prints a line a row and writes the file."""
    keep_memory()
    start_processes()
    use_all_devices()
    jax.config.update("jax_enable_compilation_cache", False)  # or compile times would be those of an earlier run
    python = find_interpreter(
        options.python,
        options.workdir.expanduser().resolve() / "venv",
        script=SCRIPT,
        requirements=(("numpy",),),
        torch_index=options.torch_index,
    )
    report = begin("gan_throughput", options, options.out)
    rows = [measure(options, python, name, filters) for filters in options.filters for name in options.methods]
    report.write({"load_average_after": os.getloadavg()[0], "rows": rows})


def measure(options: Options, python: Path, method: str, filters: int) -> dict[str, Any]:
    """One row: medians over the turns of both, with all turns, and the median ratio within a turn."""
    config = dataclasses.replace(of_width(FIGURE_8[method], filters), batch_size=options.batch_size)
    turn, first = ours(config, options.iterations)
    layouts = {name: theirs(options, python, config, flags) for name, flags in LAYOUTS.items()}
    layout = min(layouts, key=lambda name: layouts[name]["wall"])
    turns = [(turn(), theirs(options, python, config, LAYOUTS[layout])) for _ in range(options.turns)]
    images = options.iterations * options.batch_size
    row: dict[str, Any] = {"method": method, "filters": filters, "batch_size": options.batch_size}
    row |= {
        "torch": layouts[layout]["torch"],
        "torch_layout": layout,
        "threads": count_threads(),
        "devices": jax.device_count(),
    }
    for side, name in enumerate(("ours", "pytorch")):
        rates = [images / pair[side]["wall"] for pair in turns]
        row[name] = {
            "images_per_second": {"median": statistics.median(rates), "all": rates},
            "images_per_processor_second": statistics.median(images / pair[side]["processor"] for pair in turns),
            "seconds_per_kimg": 1_000 / statistics.median(rates),
        }
    row["ours"]["compile_seconds"] = first - statistics.median(mine["wall"] for mine, _ in turns) / options.iterations
    row["ours"]["new_pages_an_iteration"] = (
        statistics.median(mine["new_pages"] for mine, _ in turns) / options.iterations
    )
    row["ratio"] = statistics.median(other["wall"] / mine["wall"] for mine, other in turns)
    row["ratio_of_processor_time"] = statistics.median(b["processor"] / a["processor"] for a, b in turns)
    _show(row)
    return row


def _show(row: dict[str, Any]) -> None:
    text = [f"{row['method']}, {row['filters']} filters:"]
    for name in ("ours", "pytorch"):
        rates = row[name]["images_per_second"]
        spread = f"{min(rates['all']):.1f} to {max(rates['all']):.1f}"
        text.append(f"{name} {rates['median']:.1f} img/s ({spread}), {row[name]['seconds_per_kimg']:.1f} s/kimg;")
    text.append(f"ratio {row['ratio']:.2f}, of processor time {row['ratio_of_processor_time']:.2f};")
    pages = f"{row['ours']['new_pages_an_iteration']:,.0f} new pages of memory an iteration;"
    print(*text, pages, f"compiled in {row['ours']['compile_seconds']:.0f} s", flush=True)


def ours(config: gan.Config, iterations: int) -> tuple[Callable[[], dict[str, float]], float]:
    """(a turn, and what it took, seconds of the first iteration, which compiles) of whole iterations as trained."""
    model = gan.build_model(config, (SIDE, SIDE, 3))
    pixels = np.random.default_rng(0).integers(0, 256, (config.batch_size, SIDE, SIDE, 3)).astype(np.uint8)
    pictures = Pictures(pixels, None)
    algorithm = with_batches_over_devices(
        gan.make(config, model, first=pictures, validation=pictures, num_iterations=1)
    )
    state = jax.jit(lambda key: on_every_device(algorithm.init(key)))(root_key(0))
    layout = layout_of(state), None
    update = jax.jit(algorithm.update, donate_argnums=0, out_shardings=layout, compiler_options=compiler_options())

    def run(count: int) -> dict[str, float]:
        nonlocal state
        pages, wall, processor = _new_pages(), time.perf_counter(), time.process_time()
        for _ in range(count):
            state, metrics = update(state, ready(pictures))
            jax.device_get(metrics)
        jax.block_until_ready(state)
        taken = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
        return taken | {"new_pages": _new_pages() - pages}

    first = run(1)["wall"]
    run(1)
    return lambda: run(iterations), first


def _new_pages() -> int:
    """Pages of memory that the system has given this process, each filled with zeros."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def theirs(options: Options, python: Path, config: gan.Config, layout: tuple[str, ...]) -> dict[str, Any]:
    """A turn of PyTorch in a process of its own, after two iterations that are not counted."""
    sizes = {
        "size": SIDE,
        "filters": config.filters,
        "max-filters": config.max_filters,
        "latent": config.bottleneck.latent_size if config.bottleneck else 0,
        "noise": config.noise_size,
        "batch": config.batch_size,
        "steps": options.iterations,
        "threads": count_threads(),
    }
    typed = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    done = subprocess.run(
        [python, SCRIPT, "time", *typed, *layout], capture_output=True, text=True, env=clean_environment()
    )
    if done.returncode:
        raise ValueError(f"{python} cannot run {SCRIPT.name}: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return json.loads(done.stdout)


if __name__ == "__main__":
    command.main(lambda: main(command.parse(Options, prog="gan_throughput.py", description=__doc__)))
