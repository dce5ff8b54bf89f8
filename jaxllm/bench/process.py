"""What the operating system knows of this process. Linux; no jax."""

import os
import resource
import time
from pathlib import Path


def age() -> float:
    """Seconds since this process was started, to 10 ms."""
    stat = Path("/proc/self/stat").read_text()
    began = int(stat[stat.rindex(")") + 2 :].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began


def most_memory() -> int:
    """Bytes, the most that were resident at a time."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
