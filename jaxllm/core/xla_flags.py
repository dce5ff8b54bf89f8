"""XLA's flags per platform, in one table, each with the reason it is there; set before jax starts.

What the user has set stands. Left out on purpose: sizes that belong to one model on one machine (thresholds at which
collectives are combined, TPU's vmem limit), command buffers, and flags of the published sets that the tested compilers
have on by themselves (libtpu 0.0.42: the data-parallel all-reduce optimizations, collective fusions over several steps
and beside the tensor core). A flag is in the table only if the tested compilers know it, since an unknown one ends the
process; tests hold the table against them. No row was timed on a device by us.
"""

import os
import shlex
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Literal

from jaxllm.core.environment import Platform, expected_platform

# The variable that XLA reads flags from. Those of TPUs are known to libtpu alone: in XLA_FLAGS they end the process.
VARIABLE: dict[Platform, str] = {"cpu": "XLA_FLAGS", "gpu": "XLA_FLAGS", "tpu": "LIBTPU_INIT_ARGS"}


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag. moves_bits: it can change results in the last place, by another kernel or another order of a sum.

    needs_device: compiling with it can ask for the device itself, so that ahead-of-time compilation leaves it out.
    seen: what it changed in an fsdp step over scanned layers, compiled ahead of time for 8 devices with jax 0.10.2.
    """

    name: str
    value: str
    reason: str
    moves_bits: bool
    source: str
    seen: str
    needs_device: bool = False

    @property
    def text(self) -> str:
        """As it stands in the variable."""
        return f"--{self.name}={self.value}"


_XLA_12520 = "openxla/xla pull request 12520"
_JAX_TIPS = "jax documentation, GPU performance tips"
_TOOLBOX = "NVIDIA/JAX-Toolbox, GPU_performance.md"
_MAXTEXT = "AI-Hypercomputer/maxtext, benchmarks/xla_flags_library.py"

TABLE: dict[Platform, tuple[Flag, ...]] = {
    "cpu": (),  # nothing to gain, and fingerprints of runs so far to keep
    "gpu": (
        Flag(
            name="xla_gpu_exclude_nondeterministic_ops",
            value="true",
            reason="a step computed again gives the same bits: no sums by atomics; kernels are still tuned, and the "
            "choice is kept in io.compilation_cache",
            moves_bits=True,
            source=_XLA_12520,
            seen="another program",
            needs_device=True,
        ),
        Flag(
            name="xla_gpu_enable_triton_gemm",
            value="false",
            reason="matrix products by cuBLAS alone: as fast for large ones, and one less choice that tuning may take "
            "differently on another day",
            moves_bits=True,
            source=_TOOLBOX,
            seen="another program",
        ),
        Flag(
            name="xla_gpu_enable_latency_hiding_scheduler",
            value="true",
            reason="collectives run beside computation instead of between it",
            moves_bits=False,
            source=_JAX_TIPS,
            seen="nothing, nor when off: NVIDIA's images set it all the same",
        ),
        Flag(
            name="xla_gpu_enable_pipelined_all_gather",
            value="true",
            reason="fsdp: the weights of the next layer of the scan are gathered while this one computes",
            moves_bits=False,
            source=_TOOLBOX,
            seen="another program, as much memory",
        ),
        Flag(
            name="xla_gpu_enable_pipelined_reduce_scatter",
            value="true",
            reason="fsdp: gradients of the layer before are reduced while this one computes",
            moves_bits=True,
            source=_TOOLBOX,
            seen="nothing: there was no reduce-scatter in the loop",
        ),
        Flag(
            name="xla_gpu_enable_pipelined_all_reduce",
            value="true",
            reason="dp: the same for gradients of repeated parameters",
            moves_bits=True,
            source=_TOOLBOX,
            seen="another program, 8 % more memory",
        ),
    ),
    "tpu": (
        Flag(
            name="xla_enable_async_all_gather",
            value="true",
            reason="fsdp: the gathers of weights start early and are awaited late",
            moves_bits=False,
            source=_MAXTEXT,
            seen="with the row below, v5p and v6e: another program, 2 to 5 % more memory; v5e has both on already",
        ),
        Flag(
            name="xla_tpu_enable_async_collective_fusion_fuse_all_gather",
            value="true",
            reason="fsdp: and they are fused with the computation beside them, in whose shadow they run",
            moves_bits=False,
            source=_MAXTEXT,
            seen="as above: neither does anything alone",
        ),
    ),
}


def settle_flags(
    choice: Literal["table", "none"],
    environment: MutableMapping[str, str] | None = None,
    platform: Platform | None = None,
) -> str | None:
    """Put the table's flags where XLA reads them; what was set, for people, or None. Call it before jax starts.

    choice: `compute.xla_flags` of the run. platform: where the run will compute; None finds out without jax.
    """
    env = os.environ if environment is None else environment
    place = expected_platform(env) if platform is None else platform
    if choice == "none" or not TABLE[place]:
        return None
    variable = VARIABLE[place]
    given = env.get(variable, "")
    if given.strip() and not given.lstrip().startswith("-"):
        return f"{variable} names a file of flags, which stands alone: none of the {place} table's are added"
    names = {word.partition("=")[0].lstrip("-") for word in shlex.split(given)}
    added = [flag.text for flag in TABLE[place] if flag.name not in names]
    if not added:
        return None
    env[variable] = " ".join([given, *added]).strip()
    return f"{variable} += {' '.join(added)} (compute.xla_flags=none leaves them out)"
