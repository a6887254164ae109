"""Memory that stays with the process between steps."""

import os
import platform
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only the C library of GNU can be told to keep memory"
)

SCRIPT = """
import resource
import sys
import jax
import numpy as np
from vdbjax.training.memory import keep_memory, ready

kept = keep_memory() if sys.argv[1] == "kept" else None

@jax.jit
def step(x, batch):  # with 64 MB of scratch
    return jax.lax.fori_loop(0, 3, lambda _, y: jax.numpy.roll(y, 1) * 2.0, x) + batch[0, 0]

given, batches = jax.numpy.ones(1 << 24), np.ones((6, 1_000, 200), np.float32)
for index, batch in enumerate(batches):
    if index == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(given, ready(batch)).block_until_ready()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def new_pages(mode: str, **variables: str) -> tuple[str, int]:
    """(what `keep_memory` said, pages of memory that four steps after two had to be given anew)."""
    line = [sys.executable, "-c", textwrap.dedent(SCRIPT), mode]
    done = subprocess.run(line, capture_output=True, text=True, check=True, env={**os.environ, **variables})
    kept, pages = done.stdout.split()
    return kept, int(pages)


def test_a_step_finds_its_memory_where_the_last_one_left_it() -> None:
    said, kept = new_pages("kept")
    assert said == "True"
    assert kept < 1_000
    assert new_pages("given back")[1] > 10_000, "the test does not see what keep_memory is for"


def test_nothing_is_changed_where_there_are_several_devices() -> None:
    said, pages = new_pages("kept", JAX_NUM_CPU_DEVICES="2")
    assert said == "False"
    assert pages > 10_000
