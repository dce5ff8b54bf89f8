"""Freed memory is kept where CPUs compute, and nobody's own settings are touched."""

import subprocess
import sys

import pytest

from jaxllm.core.memory import keep_memory

# How many pages the kernel had to clear for the second of two equal blocks.
_AGAIN = """
import ctypes, resource, sys
from jaxllm.core.memory import keep_memory
if sys.argv[1] == "kept":
    assert keep_memory({}, "cpu") is not None
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(256 << 20)
    libc.memset(block, 1, 256 << 20)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _pages_again(how: str) -> int:
    return int(subprocess.run([sys.executable, "-c", _AGAIN, how], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_a_block_that_was_freed_is_not_cleared_again() -> None:
    assert _pages_again("kept") < 64
    assert _pages_again("left") >= 128  # 2 MiB a page at most


@pytest.mark.parametrize(
    "env", [{"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}, {"MALLOC_ARENA_MAX": "2"}, {"LD_PRELOAD": "libjemalloc.so.2"}]
)
def test_who_has_chosen_keeps_it(env: dict[str, str]) -> None:
    assert keep_memory(env, "cpu") is None


def test_only_cpus_need_it() -> None:
    assert keep_memory({}, "gpu") is None and keep_memory({}, "tpu") is None
