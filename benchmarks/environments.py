"""Python environments of their own for what we are compared with, on torch for the CPU."""

import os
import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path

TORCH = "torch==2.13.0"


def find_interpreter(
    python: Path | None, folder: Path, *, script: Path, requirements: Sequence[Sequence[str]], torch_index: str | None
) -> Path:
    """The interpreter given, or that of an environment in `folder`, made once; then a look whether the script starts.

    `requirements` are the arguments of `pip install`, one call after the other, after torch. Raises ValueError where
    pip fails, or the interpreter cannot run the script.
    """
    python = python or _environment(folder, requirements, torch_index)
    try:
        tried = subprocess.run([python, script, "--help"], capture_output=True, text=True, env=clean_environment())
    except OSError as error:
        raise ValueError(f"{python} is no Python interpreter: {error.strerror}") from None
    if tried.returncode:
        reason = (tried.stderr.strip() or "no message").splitlines()[-1]
        raise ValueError(f"{python} cannot run {script.name}: {reason}")
    return python


def _environment(folder: Path, requirements: Sequence[Sequence[str]], torch_index: str | None) -> Path:
    python, ready = folder / "bin" / "python", folder / "ready.txt"
    steps = [[TORCH, *(["--index-url", torch_index] if torch_index else [])], *requirements]
    if ready.is_file() and ready.read_text() == repr(steps):
        return python
    print(f"making an environment in {folder}", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    for arguments in steps:
        if subprocess.run([python, "-m", "pip", "install", "-q", *arguments], env=clean_environment()).returncode:
            raise ValueError(f"pip could not install {' '.join(arguments)}; make one yourself and name it by --python")
    ready.write_text(repr(steps))
    return python


def clean_environment() -> dict[str, str]:
    """The process's variables less PYTHONPATH, which would lay our packages over those of the other environment."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
