"""All devices as one line, over which batches are laid, and all processes as one."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from vdbjax.types import Key

AXIS = "batch"
PROCESS_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def start_processes() -> None:
    """Joins the other processes of a job where the environment describes one; before anything else touches JAX.

    Either `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` are set, or JAX itself recognises the
    cluster (Slurm with several tasks, Open MPI, a TPU pod). Raises ValueError where only some of the three are set.
    """
    _leave_a_thread_free()
    given = [name for name in PROCESS_VARIABLES if name in os.environ]
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1 or int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        jax.distributed.initialize()
    elif len(given) == len(PROCESS_VARIABLES):
        address, count, index = (os.environ[name] for name in PROCESS_VARIABLES)
        jax.distributed.initialize(address, num_processes=int(count), process_id=int(index))
    elif given:
        missing = [name for name in PROCESS_VARIABLES if name not in given]
        raise ValueError(f"{', '.join(given)} is set, but {', '.join(missing)} is not; set all three, or none")


def _leave_a_thread_free() -> None:
    """Gives XLA's CPU client one thread more than it has devices, where the host has fewer cores than that.

    A callback holds the thread of its device until its arrays have been copied, and those above 100 KiB are copied by
    the same threads (jaxlib 0.10): with none free, all wait for ever. (github.com/jax-ml/jax/issues/24255)
    """
    num_devices = max(1, jax.config.jax_num_cpu_devices)  # type: ignore[attr-defined]
    os.environ.setdefault("PJRT_NPROC", str(max(os.cpu_count() or 1, num_devices + 1)))


def use_all_devices() -> None:
    """Lets every later computation lay its batches over all devices of all processes."""
    jax.set_mesh(jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,)))


def on_every_device(tree: Any) -> Any:
    """Lays every leaf whole on each device of the mesh in use, so that each process can read it."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.lax.with_sharding_constraint(tree, PartitionSpec()) if mesh.size > 1 else tree


def layout_of(tree: Any) -> Any:
    """How the leaves lie on the devices, for `out_shardings`: left to itself, XLA moves a state at its first update,
    and compiles anew for the second. None on one device, where nothing can move."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree) if jax.sharding.get_abstract_mesh().size > 1 else None


def largest_over_processes(*values: int) -> list[int]:
    """The largest of each value over all processes, which all call this at the same place: how they agree."""
    if jax.process_count() == 1:
        return list(values)
    from jax.experimental import multihost_utils

    return np.max(multihost_utils.process_allgather(np.array(values, np.int32)), axis=0).tolist()


def root_key(seed: int) -> Key:
    """The key that all randomness of a run comes from. Raises ValueError for a seed that 32 bits do not hold."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed ({seed}) must lie between 0 and {2**32 - 1}")
    return jax.random.key(np.uint32(seed))


def available_bytes() -> int:
    """Memory that a run may still take, over all devices: the accelerators' limit, or what the host has free."""
    statistics = [device.memory_stats() for device in jax.local_devices()]
    if all(statistics):
        limits = [stats["bytes_limit"] - stats["bytes_in_use"] for stats in statistics]
        return sum(limits) * jax.process_count()
    return _host_bytes() * jax.process_count()


def _host_bytes() -> int:
    """What Linux could give without swapping; elsewhere all the memory there is."""
    table = Path("/proc/meminfo")
    lines = table.read_text().splitlines() if table.is_file() else []
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return 1024 * kilobytes[0] if kilobytes else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
