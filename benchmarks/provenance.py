"""Where a number comes from: the machine, how busy it was, the versions, the commit, and the day."""

import os
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def provenance(versions: dict[str, str]) -> dict[str, Any]:
    """What every result file begins with; `versions` as in a run's versions.json."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": versions["device"],
        "processor": _processor() or versions["processor"],
        "versions": versions,
    }


def device_slug(versions: dict[str, str]) -> str:
    """The device as part of a file name: `cpu_2_cores`, `gpu_nvidia_h200_x1`."""
    words = list(dict.fromkeys(re.findall(r"[a-z0-9]+", versions["device"].lower())))
    return f"cpu_{versions['cores']}_cores" if words[0] == "cpu" else "_".join(words)


def load_average() -> float:
    """How many processes were at work over the last minute; says so where they would disturb a measurement."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > 0.5:
        print(f"warning: load average {load:.1f} on {cores} cores before the first measurement: better wait")
    return load


def _commit() -> str:
    """The commit, with -dirty where files differ from it; 'unknown' outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str | None:
    """The processor's own name, where the system tells it."""
    listing = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", listing.read_text(), re.MULTILINE) if listing.is_file() else None
    return found[1] if found else None
