"""All devices as one line, over which batches of environments are laid."""

import os

import jax
import numpy as np

from vdbjax.types import Key

AXIS = "env"


def start_processes() -> None:
    """Joins the other processes of a job where the environment describes one; before anything else touches JAX.

    Either `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` are set, or JAX itself recognises the
    cluster (Slurm with several tasks, Open MPI, a TPU pod).
    """
    if "JAX_COORDINATOR_ADDRESS" in os.environ and "JAX_PROCESS_ID" in os.environ:
        jax.distributed.initialize(
            os.environ["JAX_COORDINATOR_ADDRESS"],
            num_processes=int(os.environ["JAX_NUM_PROCESSES"]),
            process_id=int(os.environ["JAX_PROCESS_ID"]),
        )
    elif int(os.environ.get("SLURM_NTASKS", 1)) > 1 or int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        jax.distributed.initialize()


def use_all_devices() -> None:
    """Lets every later computation lay its environments over all devices of all processes."""
    jax.set_mesh(jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,)))


def root_key(seed: int) -> Key:
    """The key that all randomness of a run comes from."""
    return jax.random.key(np.uint32(seed))


def available_bytes() -> int:
    """Memory that a run may still take, over all devices: the accelerators' limit, or what the host has free."""
    statistics = [device.memory_stats() for device in jax.local_devices()]
    if all(statistics):
        limits = [stats["bytes_limit"] - stats["bytes_in_use"] for stats in statistics]
        return sum(limits) * jax.process_count()
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") * jax.process_count()
