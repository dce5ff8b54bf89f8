"""Memory that a training process on CPUs asks for in every step and gives back: kept, and in huge pages.

XLA's CPU backend allocates all that a step needs in between at once, a gigabyte say, and frees it after. glibc's malloc
returns such a block to the system, which clears every page of it again when the next step asks: a fifth of the CPU time
of a small model's step, and more where a virtual machine hands free pages on to its host. So malloc is told to keep
what was freed, and the part of the address space that it will use is marked for huge pages, of which far fewer have to
be found. No number depends on it.
"""

import ctypes
import os
from collections.abc import Mapping
from typing import Any

from jaxllm.core.environment import Platform, expected_platform

# Of malloc.h and sys/mman.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX, _MADV_HUGEPAGE = -1, -4, -8, 14
_HUGE = 2 << 20


def keep_memory(environment: Mapping[str, str] | None = None, platform: Platform | None = None) -> str | None:
    """Let malloc keep what is freed; what was done, for people, or None. Call it before jax starts its threads.

    None too where CPUs do not compute, where malloc is not glibc's, or where the user has said how it should behave.
    platform: where the run will compute; None finds out without jax.
    """
    env = os.environ if environment is None else environment
    if (expected_platform(env) if platform is None else platform) != "cpu":
        return None
    if "glibc.malloc" in env.get("GLIBC_TUNABLES", "") or any(name.startswith("MALLOC_") for name in env):
        return None
    if (libc := _glibc()) is None or "malloc" in env.get("LD_PRELOAD", ""):
        return None
    # One arena and no mapping of its own for a large block: both would go back to the system when freed.
    settled = [libc.mallopt(what, value) for what, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))]
    if not all(settled):
        return None
    huge = _marked(libc, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    pages = ", in huge pages" if huge else ""
    return f"malloc keeps what is freed{pages} (GLIBC_TUNABLES=glibc.malloc.hugetlb=0 leaves it as it was)"


def _glibc() -> Any:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version") or not hasattr(libc, "mallopt"):
        return None
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


def _marked(libc: Any, size: int) -> bool:
    """Whether the next `size` bytes of the heap are for huge pages. Nothing of them is touched: they cost no memory."""
    if not (block := libc.malloc(size)):
        return False
    low, high = -(-block // _HUGE) * _HUGE, (block + size) // _HUGE * _HUGE
    done = libc.madvise(low, high - low, _MADV_HUGEPAGE) == 0
    libc.free(block)
    return done
