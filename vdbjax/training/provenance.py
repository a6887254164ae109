"""Where a number comes from: the versions, the commit, the machine and the day."""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

INSTRUCTIONS = ("avx", "avx2", "avx512f", "fma")
"""Of a processor, by which compilers sum in another order or round less often."""

PACKAGES = ("vdbjax", "jax", "jaxlib", "flax", "optax", "mujoco", "mujoco-mjx", "gymnasium", "brax", "numpy")


def versions() -> dict[str, str]:
    """What decides a result: our commit, the device, Python and the packages."""
    found = {name: _version(name) for name in PACKAGES}
    device = jax.devices()[0]
    return {
        "commit": _commit(),
        "device": f"{device.platform} {device.device_kind} x{jax.device_count()}",
        "processor": _listed("model name") or platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        **found,
    }


def provenance(versions: dict[str, str]) -> dict[str, Any]:
    """What every result file begins with; `versions` as in a run's versions.json."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": versions.get("commit", "unknown"),
        "device": versions["device"],
        "processor": versions["processor"],
        "versions": versions,
    }


def instructions() -> str:
    """Which of those that decide how numbers are rounded the processor has; empty where the system does not tell."""
    has = (_listed("flags") or "").split()
    return " ".join(name for name in INSTRUCTIONS if name in has)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """The commit, with -dirty where files differ from it; 'unknown' where git does not keep this file."""
    here = Path(__file__)
    describe = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        # An installed package may lie inside somebody else's repository.
        subprocess.run(
            ["git", "ls-files", "--error-unmatch", here.name], cwd=here.parent, capture_output=True, check=True
        )
        return subprocess.run(describe, cwd=here.parent, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _listed(what: str) -> str | None:
    """What the system says of the first processor; None where it does not."""
    listing = Path("/proc/cpuinfo")
    found = re.search(rf"^{what}\s*: (.*)$", listing.read_text(), re.MULTILINE) if listing.is_file() else None
    return found[1] if found else None
