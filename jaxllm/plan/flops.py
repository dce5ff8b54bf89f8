"""FLOPs of a program, counted from its jaxpr: scans times their length, whatever is recomputed as often as it is.

XLA's cost analysis counts the body of a loop once and a kernel not at all.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp


@dataclass
class Count:
    """flops: of matrix products and kernels of the whole program on all devices. notes: what was estimated, and how."""

    flops: float = 0.0
    by_kind: dict[str, float] = field(default_factory=dict)
    notes: set[str] = field(default_factory=set)

    def add(self, kind: str, flops: float) -> None:
        """Add what one operation does in all."""
        self.flops += flops
        self.by_kind[kind] = self.by_kind.get(kind, 0.0) + flops


def count(jaxpr: Any) -> Count:
    """The FLOPs of a (closed) jaxpr. Of a conditional the dearest branch; of a loop without length one round."""
    found = Count()
    _walk(getattr(jaxpr, "jaxpr", jaxpr), 1.0, found)
    return found


def _walk(jaxpr: Any, times: float, found: Count) -> None:
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        match name:
            case "dot_general":
                found.add("dot", times * _dot(eqn))
            case "ragged_dot_general" | "ragged_dot":
                found.add("ragged_dot", times * _ragged(eqn))
            case "conv_general_dilated":
                found.add("convolution", times * _convolution(eqn))
            case "pallas_call":
                found.add("kernel", times * _kernel(eqn, found))
            case "scan":
                _walk(params["jaxpr"].jaxpr, times * params["length"], found)
            case "cond":
                _dearest(params["branches"], times, found)
            case "shard_map":
                _walk(params["jaxpr"], times * _shards(eqn), found)
            case "while":
                found.notes.add("a while loop of unknown length counts once")
                _walk(params["body_jaxpr"].jaxpr, times, found)
            case _ if "dot_product_attention" in name and "wrapper" in name:
                found.add("kernel", times * _cudnn(eqn, found))
            case _:
                for inner in _inner(params):
                    _walk(inner, times, found)


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs that an equation calls."""
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield one


def _dearest(branches: Any, times: float, found: Count) -> None:
    counts = [count(branch) for branch in branches]
    dearest = max(counts, key=lambda c: c.flops)
    for kind, flops in dearest.by_kind.items():
        found.add(kind, times * flops)
    found.notes |= dearest.notes


def _dot(eqn: Any) -> float:
    (over, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in over)


def _ragged(eqn: Any) -> float:
    """Every row meets the matrix of its own group."""
    numbers = eqn.params.get("ragged_dot_dimension_numbers")
    left = eqn.invars[0].aval.shape
    out = math.prod(eqn.outvars[0].aval.shape)
    if numbers is None:
        return 2.0 * out * left[-1]
    (over, _), _ = numbers.dot_dimension_numbers
    ragged = numbers.lhs_ragged_dimensions[0]
    work = 2.0 * out * math.prod(left[i] for i in over)
    # Rows summed over are shared out among the groups, each of which has a result of its own.
    return work / eqn.invars[2].aval.shape[-1] if ragged in over else work


def _convolution(eqn: Any) -> float:
    kernel = eqn.invars[1].aval.shape
    out_features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / out_features


# Attention kernels by name: how many products of all queries with all keys each computes.
_ATTENTION = (
    (re.compile(r"splash_m[hq]a_fwd"), 2),
    (re.compile(r"splash_m[hq]a_dq"), 3),
    (re.compile(r"splash_m[hq]a_dkv"), 4),
    (re.compile(r"mha_forward"), 2),
    (re.compile(r"mha_backward"), 7),  # scores and their slopes once for the keys, once more for the queries
)


def _kernel(eqn: Any, found: Count) -> float:
    """Its author's estimate; of attention, from its shapes; else its body for every point of its grid."""
    estimate = eqn.params.get("cost_estimate")
    named = eqn.params.get("name") or getattr(eqn.params.get("name_and_src_info"), "name", "") or "kernel"
    if estimate is not None:
        found.notes.add(f"kernel {named}: FLOPs as its author estimates them")
        return float(estimate.flops)
    for pattern, products in _ATTENTION:
        if pattern.match(named):
            found.notes.add(f"kernel {named}: FLOPs from its shapes, half of the keys for every query")
            return _attention(eqn, products) / 2
    grid = eqn.params["grid_mapping"].grid
    if any(not isinstance(n, int) for n in grid):
        found.notes.add(f"kernel {named}: its grid is not known before it runs, and its FLOPs are not counted")
        return 0.0
    body = count(eqn.params["jaxpr"])
    found.notes.add(f"kernel {named}: FLOPs of its body at every point of its grid, skipped blocks included")
    found.notes.update(f"kernel {named}: {note}" for note in body.notes)
    return body.flops * math.prod(grid)


def _attention(eqn: Any, products: int) -> float:
    """`products` products of all queries with all keys. Heads are an axis before the sequence in splash, and after it
    in GPU's kernel: the keys are what is left of their size."""
    arrays = [v.aval for v in (*eqn.invars, *eqn.outvars)]
    large = [a.shape for a in arrays[: len(eqn.invars)] if len(a.shape) >= 3 and jnp.issubdtype(a.dtype, jnp.floating)]
    queries, keys = large[0], large[1]
    results = [a for a in arrays[len(eqn.invars) :] if a.shape == queries]
    if products == 4 and len(results) > 2:
        products = 5
    splash = len(queries) == 3 or eqn.params["grid_mapping"].num_index_operands > 0
    T = keys[-2] if splash else keys[1]
    return 2.0 * products * math.prod(queries) * T


def _cudnn(eqn: Any, found: Count) -> float:
    """Fused attention of cuDNN by its two products forward and five backward, every key for every query."""
    found.notes.add("cuDNN attention: FLOPs from its shapes, every key for every query")
    queries, keys = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape
    B, S, H, K = queries if eqn.params.get("layout", 0) == 0 else (queries[0], queries[2], queries[1], queries[3])
    T = keys[1] if eqn.params.get("layout", 0) == 0 else keys[2]
    products = 5 if "bwd" in eqn.primitive.name else 2
    return 2.0 * products * B * H * S * T * K


def _shards(eqn: Any) -> int:
    """How many devices execute the body of a shard_map for themselves."""
    mesh: jax.sharding.Mesh = eqn.params["mesh"]
    manual = eqn.params["newly_manual_axes" if "newly_manual_axes" in eqn.params else "manual_axes"]
    return math.prod(mesh.shape[axis] for axis in manual)
