"""Where results go, named by the device, and how busy the machine was."""

import os
import re
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


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


def without_folders(options: dict[str, Any]) -> dict[str, Any]:
    """Options for a result file: paths by their last part, as folders say nothing elsewhere; without where to write."""
    named = {name: value.name if isinstance(value, Path) else value for name, value in options.items()}
    return {name: value for name, value in named.items() if name != "out"}
