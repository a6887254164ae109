"""Batches over devices: each device of the mesh in use takes its part of the leading axis."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec


def over_devices(tree: Any) -> Any:
    """Lays the leading axis of every leaf over the mesh in use; without one, or with one device, changes nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.lax.with_sharding_constraint(tree, PartitionSpec(mesh.axis_names)) if mesh.size > 1 else tree


def on_each_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a function of batches once a device, on that device's part: for callbacks, which XLA cannot split."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return function
    parts = PartitionSpec(mesh.axis_names)
    return jax.shard_map(function, in_specs=parts, out_specs=parts, check_vma=False)


def check_shares(name: str, count: int) -> None:
    """Raises ValueError, with the setting's name, for a batch that the devices of the mesh in use cannot share."""
    num_devices = jax.sharding.get_abstract_mesh().size
    if num_devices > 1 and count % num_devices:
        raise ValueError(f"{name} ({count}) must be divisible by the number of devices ({num_devices})")


def in_whole_batches(count: int) -> int:
    """At least `count`, and as many on each device."""
    return -(-count // jax.device_count()) * jax.device_count()
