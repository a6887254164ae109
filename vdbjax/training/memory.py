"""Memory that a process keeps between the steps of a training on a CPU, on Linux.

XLA takes a step's scratch memory from the C library and gives it back after the step, several hundred MB for a model of
images. The C library returns it to the system, which hands it out again page by page, each filled with zeros: an eighth
of a GAN's processor time. Kept, and in pages of 2 MiB, that time falls away, and finding addresses takes less.

Only the heap of the main thread can hold as much, so steps are run by the thread that calls them, not by one of XLA's:
none is queued, and none has to wait for its batch.
"""

import ctypes
import sys
from typing import Any

import jax

RESERVE = 4 << 30
"""Bytes at the heap's end that come in large pages where they are used at all; none is taken before."""
LARGE_PAGE = 2 << 20
MMAP_MAX, TRIM_THRESHOLD, MADV_HUGEPAGE = -4, -1, 14  # of malloc.h and sys/mman.h


def keep_memory() -> bool:
    """Lets freed memory stay with the process, for computations of the main thread; before the first one of JAX.

    For commands that train one model: it holds for the whole process, whose size stays at its peak, and a call returns
    when its step is done. False, and nothing is changed, where the C library is not GNU's, or where a CPU makes several
    devices, each of which has a thread of its own.
    """
    if jax.config.jax_num_cpu_devices > 1:  # type: ignore[attr-defined]
        return False
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        return False
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    libc.mallopt(MMAP_MAX, 0)
    libc.mallopt(TRIM_THRESHOLD, -1)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.madvise.argtypes, libc.free.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), (ctypes.c_void_p,)
    if start := libc.malloc(RESERVE):  # may be refused, where memory is promised sparingly
        first = -(-start // LARGE_PAGE) * LARGE_PAGE
        libc.madvise(first, (start + RESERVE - first) // LARGE_PAGE * LARGE_PAGE, MADV_HUGEPAGE)
        libc.free(start)
    return True


def ready(batch: Any) -> Any:
    """The batch in the device's memory; where there are several devices, as it is."""
    return batch if jax.device_count() > 1 else jax.block_until_ready(jax.device_put(batch))
