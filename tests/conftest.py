"""Every test sees two CPU devices, no silent broadcasting over ranks, and executables compiled by earlier runs."""

import os
from pathlib import Path

# In the environment, so that commands which tests start in processes of their own have them too.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "vdbjax-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # every process makes the same small ones
# Code that runs once is not worth optimising: compiling takes two thirds of the time so, and is most of what tests do.
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}".strip()
# Callbacks hold a thread of XLA's for each device, and copies of large arrays need another (training/devices.py).
os.environ.setdefault("PJRT_NPROC", "4")

import jax

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
