"""Where results go, named by the device, and what is written beside them: origin, options, how busy the machine was."""

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdbjax.training.provenance import provenance, versions
from vdbjax.training.run_dir import write_json

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Report:
    """The file that a script writes."""

    out: Path
    origin: dict[str, Any]  # what stands there before the numbers

    def write(self, numbers: dict[str, Any]) -> None:
        """Writes it, in a folder that may be new, and says so."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.out, self.origin | numbers)
        print(f"wrote {self.out}")


def begin(name: str, options: Any, out: Path | None = None) -> Report:
    """A script's report, NAME_DEVICE.json among the results where no path is given.

    To be called before the first measurement, for the machine's load, and before anything is written into the checkout.
    """
    found = versions()
    return Report(
        out or RESULTS / f"{name}_{device_slug(found)}.json",
        {
            **provenance(found),
            "load_average_before": load_average(),
            "options": without_folders(dataclasses.asdict(options)),
        },
    )


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
