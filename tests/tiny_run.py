"""A run folder for the tests of what is done with trained policies."""

import os
import subprocess
import sys
from pathlib import Path

OPTIONS = """--env hopper --engine c --num-envs 4 --num-seeds 2 --total-steps 512 --evaluations 1 --eval-episodes 2
    --ppo.rollout-length 16 --ppo.minibatch-size 64 --ppo.num-epochs 2"""


def tiny_run(base: Path) -> Path:
    """Two seeds of a policy that has hardly learnt, made once in `base`.

    In a process of its own, since training lays a mesh over the devices of its process.
    """
    folder = base / "tiny"
    if not folder.exists():
        arguments = [sys.executable, "-m", "vdbjax.train", "ppo", *OPTIONS.split(), "--out", str(folder)]
        done = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"})
        assert done.returncode == 0, done.stderr
    return folder
