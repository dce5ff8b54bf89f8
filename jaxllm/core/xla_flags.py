"""XLA's flags per platform, in one table, each with the reason it is there; set before jax starts.

What the user has set stands. Left out on purpose: sizes that belong to one model on one machine (thresholds at which
collectives are combined, TPU's vmem limit), and whatever XLA does by default already. A flag is in the table only if
the tested jax and libtpu know it, since an unknown one ends the process; tests hold the table against them.
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

    needs_device: compiling with it asks for the device itself, so that ahead-of-time compilation leaves it out.
    """

    name: str
    value: str
    reason: str
    moves_bits: bool
    source: str
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
            needs_device=True,
        ),
        Flag(
            name="xla_gpu_enable_triton_gemm",
            value="false",
            reason="matrix products by cuBLAS alone: as fast for large ones, and one less choice that tuning may take "
            "differently on another day",
            moves_bits=True,
            source=_TOOLBOX,
        ),
        Flag(
            name="xla_gpu_enable_latency_hiding_scheduler",
            value="true",
            reason="collectives run beside computation instead of between it",
            moves_bits=False,
            source=_JAX_TIPS,
        ),
        Flag(
            name="xla_gpu_enable_pipelined_all_gather",
            value="true",
            reason="fsdp: the weights of the next layer of the scan are gathered while this one computes",
            moves_bits=False,
            source=_TOOLBOX,
        ),
        Flag(
            name="xla_gpu_enable_pipelined_reduce_scatter",
            value="true",
            reason="fsdp: gradients of the layer before are reduced while this one computes",
            moves_bits=True,
            source=_TOOLBOX,
        ),
        Flag(
            name="xla_gpu_enable_pipelined_all_reduce",
            value="true",
            reason="dp: the same for gradients of repeated parameters",
            moves_bits=True,
            source=_TOOLBOX,
        ),
    ),
    "tpu": (
        Flag(
            name="xla_tpu_enable_data_parallel_all_reduce_opt",
            value="true",
            reason="several slices: gradients cross the data-centre network while the backward pass goes on",
            moves_bits=True,
            source=_MAXTEXT,
        ),
        Flag(
            name="xla_tpu_data_parallel_opt_different_sized_ops",
            value="true",
            reason="the same where the all-reduces of an iteration differ in size, as those of a layer do",
            moves_bits=True,
            source=_MAXTEXT,
        ),
        Flag(
            name="xla_tpu_enable_async_collective_fusion",
            value="true",
            reason="fsdp: collectives are fused with the computation beside them and run in its shadow",
            moves_bits=False,
            source=_MAXTEXT,
        ),
        Flag(
            name="xla_tpu_enable_async_collective_fusion_fuse_all_gather",
            value="true",
            reason="the gathers of weights are among those",
            moves_bits=False,
            source=_MAXTEXT,
        ),
        Flag(
            name="xla_tpu_enable_async_collective_fusion_multiple_steps",
            value="true",
            reason="a long gather is spread over several fusions",
            moves_bits=False,
            source=_MAXTEXT,
        ),
        Flag(
            name="xla_tpu_overlap_compute_collective_tc",
            value="true",
            reason="the tensor core computes while a collective of its own is on the way",
            moves_bits=False,
            source=_MAXTEXT,
        ),
        Flag(
            name="xla_enable_async_all_gather",
            value="true",
            reason="gathers start early and are awaited late",
            moves_bits=False,
            source=_MAXTEXT,
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
