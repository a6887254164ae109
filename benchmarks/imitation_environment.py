"""A Python environment with the `imitation` library 1.0.1, on torch for the CPU."""

import os
import subprocess
import venv
from pathlib import Path

SCRIPT = Path(__file__).parent / "imitation_gail.py"
TORCH = "torch==2.13.0"
NEWER = "stable-baselines3==2.9.2 gymnasium[mujoco]==1.4.0 mujoco==3.17.0 tensorboard==2.21.0 datasets==5.2.0"
REQUIREMENTS = (
    (*NEWER.split(), "scikit-learn", "tqdm", "rich", "wasabi"),
    # Its own pins are of releases that do not go with this Gymnasium and MuJoCo; it runs with the newer ones above.
    ("--no-deps", "imitation==1.0.1", "seals==0.2.1", "huggingface-sb3==3.0"),
)


def find_interpreter(python: Path | None, folder: Path, *, torch_index: str | None) -> Path:
    """The interpreter given, or that of an environment in `folder`, made once, after a look whether it has the library.

    Raises ValueError where pip fails, or the interpreter cannot run the script.
    """
    python = python or _environment(folder, torch_index)
    try:
        tried = subprocess.run([python, SCRIPT, "--help"], capture_output=True, text=True, env=clean_environment())
    except OSError as error:
        raise ValueError(f"{python} is no Python interpreter: {error.strerror}") from None
    if tried.returncode:
        reason = (tried.stderr.strip() or "no message").splitlines()[-1]
        raise ValueError(f"{python} cannot run {SCRIPT.name}: {reason}")
    return python


def _environment(folder: Path, torch_index: str | None) -> Path:
    python, ready = folder / "bin" / "python", folder / "ready.txt"
    steps = [[TORCH, *(["--index-url", torch_index] if torch_index else [])], *REQUIREMENTS]
    if ready.is_file() and ready.read_text() == repr(steps):
        return python
    print(f"making an environment for the imitation library in {folder}", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    for arguments in steps:
        if subprocess.run([python, "-m", "pip", "install", "-q", *arguments], env=clean_environment()).returncode:
            raise ValueError(f"pip could not install {' '.join(arguments)}; make one yourself and name it by --python")
    ready.write_text(repr(steps))
    return python


def clean_environment() -> dict[str, str]:
    """The process's variables less PYTHONPATH, which would lay our packages over those of the other environment."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
