"""Every test sees two CPU devices, no silent broadcasting over ranks, and executables compiled by earlier runs."""

import os
import signal
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

# In the environment, so that commands which tests start in processes of their own have them too.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "vdbjax-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Compiling is most of what tests do, and code that runs once is not worth optimising: with these flags it takes a third
# of the time. jaxlib 0.11 no longer knows the second one, and ends a process that names it.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=0",
        *["--xla_cpu_use_fusion_emitters=false"] * version("jaxlib").startswith("0.10."),
        *os.environ.get("XLA_FLAGS", "").split(),
    ]
)
# Callbacks hold a thread of XLA's for each device, and copies of large arrays need another (training/devices.py).
os.environ.setdefault("PJRT_NPROC", "4")

import jax
import pytest

from vdbjax.training.devices import AXIS

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")

# A shell's background jobs ignore Ctrl-C, and so would what tests start and stop by it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def two_devices() -> Iterator[None]:
    """Both devices as the mesh in use."""
    with jax.set_mesh(jax.make_mesh((2,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))):
        yield
