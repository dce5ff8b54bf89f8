"""What devices say to each other in a compiled step: every collective, how often, between whom. No jax.

Devices are numbered as the program numbers them: by their place in the mesh.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np

from jaxllm.plan.hlo import Instruction, Module, Run, elements, leaves

Kind = Literal[
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute", "broadcast"
]
_KINDS: dict[str, Kind] = {
    "all-gather": "all-gather",
    "all-reduce": "all-reduce",
    "reduce-scatter": "reduce-scatter",
    "all-to-all": "all-to-all",
    "ragged-all-to-all": "ragged-all-to-all",
    "collective-permute": "collective-permute",
    "collective-broadcast": "broadcast",
}
_GROUPS = re.compile(
    r"replica_groups=(mesh\[[^\]]*\](?:, device_ids=\([^{]*\))? ?\{[^}]*\}|\{\{[\d,{} ]*\}\}|\{\}"
    r"|\[[^\]]*\](?:<=\[[^\]]*\](?:T\([\d,]*\))?)?)"
)
_TRANSFERS: dict[str, Kind] = {
    "ALL_REDUCE": "all-reduce",
    "ALL_GATHER": "all-gather",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")
_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{} ]*\})\}")


@dataclass(frozen=True)
class Collective:
    """One collective of a step. bytes: of the whole array that a group shares, per execution: what an all-gather gives,
    a reduce-scatter or all-to-all takes; of a ragged one its whole buffer, the most it can be. groups: [groups, devices
    each], int; of a permutation its pairs, [n, 2]. where: the operation of the model that asked for it."""

    kind: Kind
    bytes: float
    times: int
    groups: np.ndarray
    name: str
    where: str = ""

    @property
    def group_size(self) -> int:
        """Devices that take part together."""
        return int(self.groups.shape[1])

    def sent(self) -> float:
        """Bytes that one device sends in all executions, by an algorithm that sends as little as there is to send."""
        n = self.group_size
        match self.kind:
            case "all-gather" | "reduce-scatter" | "all-to-all" | "ragged-all-to-all":
                each = self.bytes * (n - 1) / n
            case "all-reduce":
                each = 2 * self.bytes * (n - 1) / n
            case "collective-permute" | "broadcast":
                each = self.bytes
            case _:
                assert_never(self.kind)
        return each * self.times

    def split(self, slice_of: np.ndarray) -> tuple[float, float]:
        """`sent` as (within a slice, between slices), hierarchically: what leaves a slice leaves it once.

        slice_of: the slice of every device."""
        if self.kind in ("collective-permute", "broadcast"):
            crossing = slice_of[self.groups[:, 0]] != slice_of[self.groups[:, -1]]
            # Devices wait for the slowest of them: a hop that any pair makes is a hop of all.
            return self.sent() * bool((~crossing).any()), self.sent() * bool(crossing.any())
        slices = max(len(set(slice_of[g].tolist())) for g in self.groups)
        n, total = self.group_size, self.sent()
        if slices == 1:
            return total, 0.0
        factor = 2 if self.kind == "all-reduce" else 1
        if self.kind in ("all-to-all", "ragged-all-to-all"):
            between = self.bytes * (slices - 1) / slices * self.times
        else:
            between = factor * self.bytes / n * (slices - 1) * self.times
        return total - between, between


def collectives(module: Module, devices: int, slice_of: np.ndarray | None = None) -> list[Collective]:
    """Every collective of the module on `devices` devices; slice_of: the slice of each, where there are several.

    An asynchronous one that the compiler spread over a chain of fusions appears in each of them and counts once. A
    reduce-scatter that TPU spells as a fusion around an all-reduce is one. What crosses the slices of TPU, the compiler
    has made a send and a receive of. What spans one device only is left out.
    """
    found, chains = [], set()
    for run in module.runs():
        one = run.instruction
        if one.op == "send" and "xla_megascale" in one.attributes and slice_of is not None:
            found.append(_between_slices(run, module, slice_of))
            continue
        kind = _KINDS.get(one.op.removesuffix("-start"))
        if kind is None:
            continue
        chain = one.attribute(r'chain_id="(\d+)"')
        if chain is not None:
            key = (run.scope, chain, one.attribute(r"channel_id=(\d+)"))
            if key in chains:
                continue
            chains.add(key)
        groups = groups_of(one, devices)
        if groups.shape[1] < 2 or len(groups) == 0:
            continue
        if kind == "all-reduce" and "reduce-scatter" in run.computation:
            kind = "reduce-scatter"
        found.append(Collective(kind, _whole(kind, run, module), run.times, groups, one.name, _where(one)))
    return found


def _between_slices(run: Run, module: Module, slice_of: np.ndarray) -> Collective:
    """A transfer of TPU's runtime for several slices: every device talks to those that stand where it does in the
    other slices. ValueError for one of an unknown type."""
    one = run.instruction
    kind = _TRANSFERS.get(one.attribute(r'transfer_type="(\w+)"') or "")
    target = re.match(r"\{([\d,:]+)\}x", one.attribute(r'megascale_target="([^"]*)"') or "")
    if kind is None or target is None:
        raise ValueError(f"{one.name}: a transfer between slices that is not understood: {one.attributes[:300]}")
    slices = [i - 1 for part in target[1].split(",") for i in range(_numbers(part)[0], _numbers(part)[-1] + 1)]
    groups = np.stack([np.flatnonzero(slice_of == i) for i in slices], axis=1)
    scope = module.computations[run.computation]
    sent = scope[one.operands[0]].bytes * (len(slices) if kind == "all-gather" else 1)
    if kind == "collective-permute":
        groups = groups[:, :2]
    return Collective(kind, sent, run.times, groups, one.name, _where(one))


def _whole(kind: Kind, run: Run, module: Module) -> float:
    """Bytes of the whole array of one execution."""
    one = run.instruction
    match kind:
        case "all-gather" | "all-to-all" | "ragged-all-to-all" | "collective-permute" | "broadcast":
            if not one.op.endswith("-start"):
                return one.bytes
            # ((operands), (results), context ...): the second is what it gives.
            parts = elements(one.type)
            return sum(leaf.bytes for leaf in leaves(parts[1] if len(parts) > 1 else parts[0]))
        case "all-reduce":
            return one.bytes  # its start has the type of the result
        case "reduce-scatter":
            scope = module.computations[run.computation]
            return sum(scope[name].bytes for name in one.operands if name in scope)
        case _:
            assert_never(kind)


def _where(one: Instruction) -> str:
    return one.attribute(r'op_name="([^"]*)"') or ""


def groups_of(one: Instruction, devices: int) -> np.ndarray:
    """The device numbers of every group, int [groups, devices each]; of a permutation, its pairs without those to
    itself. ValueError for groups of unequal size or a spelling that is unknown."""
    if (pairs := _PAIRS.search(one.attributes)) is not None:
        found = np.array([[int(n) for n in p.split(",")] for p in re.findall(r"\{([\d, ]+)\}", pairs[1])]).reshape(
            -1, 2
        )
        return found[found[:, 0] != found[:, 1]]
    match = _GROUPS.search(one.attributes)
    if match is None:
        raise ValueError(f"{one.name}: no replica groups in {one.attributes[:120]!r}")
    return parse_groups(match[1], devices)


def parse_groups(text: str, devices: int) -> np.ndarray:
    """One of HLO's three spellings: `{{0,1},{2,3}}` ({} is all), `[2,4]<=[4,2]T(1,0)`, `mesh['a'=2,'b'=4] {'b'}`."""
    if text.startswith("mesh["):
        return _mesh_groups(text)
    if text.startswith("{"):
        rows = [[int(n) for n in g.split(",")] for g in re.findall(r"\{([\d, ]+)\}", text)]
        if len({len(r) for r in rows}) > 1:
            raise ValueError(f"groups of unequal size: {text[:80]}")
        return np.array(rows) if rows else np.arange(devices).reshape(1, devices)
    shape, _, rest = text.partition("<=")
    sizes = _numbers(shape)
    return _iota(rest or shape).reshape(sizes)


def _iota(text: str) -> np.ndarray:
    """`[4,2]T(1,0)`: the numbers from 0 in that shape, transposed if it says so."""
    dims, _, order = text.partition("T")
    ids = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
    return ids.transpose(_numbers(order)) if order else ids


def _mesh_groups(text: str) -> np.ndarray:
    """`mesh['a'=4,'b'=64], device_ids=([64,4]T(1,0)) {'a','b':(2)8}`: over a, and over the 8 in the middle of b, which
    is 2 outer, 8, and what is left inner."""
    head, _, inside = text.partition("{")
    axes = [(name, int(n)) for name, n in re.findall(r"'([^']+)'=(\d+)", head)]
    order = re.search(r"device_ids=\((.*)\)", head)
    total = math.prod(n for _, n in axes)
    ids = (np.arange(total) if order is None else _iota(order[1])).reshape(-1)
    parts = {name: (int(before or 1), int(size or 0)) for name, before, size in _AXIS.findall(inside)}
    shape: list[int] = []
    over: list[int] = []
    for name, n in axes:
        before, size = parts.get(name, (1, 1))
        size = size or n
        if name in parts:
            over.append(len(shape) + 1)
        shape += [before, size, n // (before * size)]
    if math.prod(shape) != total or set(parts) - {name for name, _ in axes}:
        raise ValueError(f"groups that are not understood: {text[:120]}")
    rest = [i for i in range(len(shape)) if i not in over]
    return ids.reshape(shape).transpose(*rest, *over).reshape(-1, math.prod(shape[i] for i in over))


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def mesh_axes_of(groups: np.ndarray, mesh: dict[str, int]) -> tuple[str, ...]:
    """The axes of a mesh along which devices of a group differ, outer first."""
    places = np.unravel_index(groups, tuple(mesh.values()))
    return tuple(axis for axis, at in zip(mesh, places, strict=True) if bool((at != at[:, :1]).any()))


def by_axis(
    found: Sequence[Collective], mesh: dict[str, int], slice_of: np.ndarray
) -> Iterator[tuple[tuple[str, ...], Kind, int, float, float]]:
    """(mesh axes, kind, executions, bytes sent within a slice, between slices) per step and device, largest first."""
    sums: dict[tuple[tuple[str, ...], Kind], list[float]] = {}
    for one in found:
        within, between = one.split(slice_of)
        row = sums.setdefault((mesh_axes_of(one.groups, mesh), one.kind), [0, 0.0, 0.0])
        row[0] += one.times
        row[1] += within
        row[2] += between
    for (axes, kind), (times, within, between) in sorted(sums.items(), key=lambda x: -x[1][1] - x[1][2]):
        yield axes, kind, int(times), within, between
