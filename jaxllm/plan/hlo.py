"""Compiled HLO text as a value: computations, instructions, and how often each of them runs in a step. No jax.

XLA's own cost analysis counts the body of a loop once, and the text is the only place where fusions, layouts and the
partitioner's collectives can be seen on every backend.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

_BYTES = {
    "pred": 1.0, "token": 0.0, "opaque": 0.0,
    "s2": 0.25, "u2": 0.25, "s4": 0.5, "u4": 0.5, "s8": 1.0, "u8": 1.0, "s16": 2.0, "u16": 2.0, "bf16": 2.0, "f16": 2.0,
    "s32": 4.0, "u32": 4.0, "f32": 4.0, "s64": 8.0, "u64": 8.0, "f64": 8.0, "c64": 8.0, "c128": 16.0,
}  # fmt: skip
_LEAF = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_CALLED = re.compile(r"\b(?:calls|to_apply|called_computations|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")
_BRANCH = re.compile(r"\b(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))")
# What calls a computation without writing what that computes on the way.
_FUSING = ("fusion", "fusion-start", "async-start")
_COMMENT = re.compile(r"/\*.*?\*/")


@dataclass(frozen=True, slots=True)
class Leaf:
    """One array of a type. space: 0 is device memory; TPU keeps small arrays in faster ones."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> float:
        """Without the padding of a layout."""
        # Eight-bit floats have many names (f8e4m3fn, ...), and all of them one byte.
        return math.prod(self.dims) * (1.0 if self.dtype.startswith("f8") else _BYTES[self.dtype])


@dataclass(frozen=True, slots=True)
class Instruction:
    """`name = type op(operands), attributes`."""

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    attributes: str
    root: bool
    literal: str = ""  # of a constant

    @property
    def leaves(self) -> list[Leaf]:
        """The arrays of the result."""
        return leaves(self.type)

    @property
    def bytes(self) -> float:
        """Of the result."""
        return sum(leaf.bytes for leaf in self.leaves)

    def attribute(self, pattern: str) -> str | None:
        """The first group of `pattern` in what follows the operands."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None


@dataclass(frozen=True, slots=True)
class Run:
    """An instruction that is executed `times` a step in `scope`, the computation of the loop (or entry) it runs in;
    `fused` if it is part of a fusion, whose intermediate values are never written."""

    instruction: Instruction
    computation: str
    scope: str
    times: int
    fused: bool


class Module:
    """A compiled module. `unknown_loops` names the loops whose trip count the text does not tell; they count once."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        self.unknown_loops: list[str] = []
        here: dict[str, Instruction] | None = None
        for line in text.splitlines():
            if line.startswith("  ") and here is not None:
                if (made := _instruction(line)) is not None:
                    here[made.name] = made
            elif header := _HEADER.match(line):
                here = self.computations[header[2]] = {}
                self.entry = header[2] if header[1] else self.entry
        if not self.entry:
            raise ValueError("no HLO module: it has no ENTRY computation")

    def runs(self) -> Iterator[Run]:
        """Every instruction that a step executes, those inside of fusions too. Of a conditional, the branch with most
        instructions."""
        yield from self._runs(self.entry, self.entry, 1, False)

    def _runs(self, name: str, scope: str, times: int, fused: bool) -> Iterator[Run]:
        for one in self.computations[name].values():
            yield Run(one, name, scope, times, fused)
            if one.op == "while":
                body = one.attribute(r"\bbody=%?([\w.\-]+)") or ""
                yield from self._runs(body, body, times * self.trips(one, name), fused)
            elif one.op == "conditional":
                branches = [b for b in called(one) if b in self.computations]
                longest = max(branches, key=lambda b: sum(1 for _ in self._runs(b, scope, times, fused)))
                yield from self._runs(longest, scope, times, fused)
            elif not one.op.endswith(("-done", "-update")):  # of an asynchronous pair, the start says what is called
                for callee in called(one):
                    if callee in self.computations:
                        yield from self._runs(callee, scope, times, fused or one.op in _FUSING)

    def trips(self, loop: Instruction, computation: str) -> int:
        """How often a `while` of `computation` goes round: what the compiler says (GPU, CPU), or what its condition
        compares (TPU)."""
        if (said := loop.attribute(r"known_trip_count\W+n\W+(\d+)")) is not None:
            return int(said)
        counted = self._counted(loop, computation)
        if counted is None:
            self.unknown_loops.append(loop.name)
            return 1
        return counted

    def _counted(self, loop: Instruction, computation: str) -> int | None:
        """Trips of a loop whose counter goes up to a constant: from where, and in which steps, the text says."""
        condition = self.computations.get(loop.attribute(r"\bcondition=%?([\w.\-]+)") or "", {})
        body = self.computations.get(loop.attribute(r"\bbody=%?([\w.\-]+)") or "", {})
        parts = [condition, *(self.computations.get(c, {}) for one in condition.values() for c in called(one))]
        limits = [n for part in parts for one in part.values() if (n := _number(one)) is not None]
        if not limits:
            return None
        looked_at = [i.attribute(r"\bindex=(\d+)") for i in condition.values() if i.op == "get-tuple-element"]
        if len(looked_at) != 1 or looked_at[0] is None:
            return max(limits)
        index, scope = int(looked_at[0]), self.computations[computation]
        first = self._element(scope, scope.get(loop.operands[0]), index)
        after = self._element(body, next((one for one in body.values() if one.root), None), index)
        start = 0 if first is None else _number(first) or 0
        return -(-(max(limits) - start) // self._step(body, after))

    def _element(self, scope: dict[str, Instruction], carried: Instruction | None, index: int) -> Instruction | None:
        """What makes an element of a tuple, copies apart."""
        if carried is None or carried.op != "tuple":
            return None
        value = scope.get(carried.operands[index])
        while value is not None and value.op in ("copy", "bitcast") and value.operands:
            value = scope.get(value.operands[0])
        return value

    def _step(self, body: dict[str, Instruction], after: Instruction | None) -> int:
        """What a round adds to the counter: 1 unless an addition of another constant makes its next value."""
        if after is not None and after.op == "fusion":
            body = self.computations.get(called(after)[0], {})
            after = next((one for one in body.values() if one.root), None)
        if after is None or after.op != "add":
            return 1
        added = [n for name in after.operands if name in body and (n := _number(body[name])) is not None]
        return added[0] if len(added) == 1 else 1


def _number(one: Instruction) -> int | None:
    """The value of an integer constant."""
    return int(one.literal) if one.op == "constant" and re.match(r"[su]\d+\[\]", one.type) else None


def leaves(text: str) -> list[Leaf]:
    """The arrays of a type as HLO spells it: `bf16[2,8]{1,0:T(8,128)S(1)}`, or a tuple of such."""
    found = []
    for dtype, dims, layout in _LEAF.findall(_COMMENT.sub("", text)):
        if dtype in _BYTES or dtype.startswith("f8"):
            space = re.search(r"S\((\d+)\)", layout)
            found.append(Leaf(dtype, tuple(map(int, filter(None, dims.split(",")))), int(space[1]) if space else 0))
    return found


def elements(text: str) -> list[str]:
    """The types in a tuple type, outermost level; a type that is none is its only element."""
    text = _COMMENT.sub("", text).strip()
    if not text.startswith("("):
        return [text]
    found, depth, start = [], 0, 1
    for i, c in enumerate(text):
        depth += c in "([{"
        depth -= c in ")]}"
        if (c == "," and depth == 1) or depth == 0:
            found.append(text[start:i].strip())
            start = i + 1
    return [f for f in found if f]


def called(one: Instruction) -> list[str]:
    """The computations that an instruction names; a reduction's (`to_apply` of a collective) is not called for long."""
    if one.op.startswith(("all-reduce", "reduce", "scatter", "sort", "select-and-scatter", "map")):
        return [n.strip().lstrip("%") for n in re.findall(r"\bcalls=(%?[\w.\-]+)", one.attributes)]
    names = [a or b for a, b in _BRANCH.findall(one.attributes)]
    names += _CALLED.findall(one.attributes)
    apart = [name.strip().lstrip("%") for text in names for name in text.strip("{}").split(",")]
    return list(dict.fromkeys(name for name in apart if name))


def _instruction(line: str) -> Instruction | None:
    text = line.strip()
    root = text.startswith("ROOT ")
    name, equals, rest = text.removeprefix("ROOT ").partition(" = ")
    if not equals:
        return None
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    op, bracket, _ = rest.partition("(")
    if not bracket:
        return None
    close = _closing(rest, len(op))
    inside = rest[len(op) + 1 : close]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    literal = inside if op in ("constant", "parameter") else ""
    return Instruction(name.lstrip("%"), kind, op, operands, rest[close + 1 :], root, literal)


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at or after `start` closes."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"unbalanced brackets in HLO: {text[:80]!r}")
