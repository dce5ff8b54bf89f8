"""A table of Maps applied: our arrays -> their tensors, and back. Nothing but axes moves, so that no bit is lost."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxllm.models.families.table import Map, letters

Array = np.ndarray[Any, Any]
Index = tuple[int, ...]
Read = Callable[[str, Index], Array]  # (path of ours, leading indices into it: none, layer, or layer and expert)

_GROUP = re.compile(r"\(([A-Z]+)\)|([A-Z])")


@dataclass(frozen=True)
class Part:
    """The part of a tensor that holds an array of ours, or a layer or an expert of it.

    groups: its axes in their tensor, each the letters of ours that it merges. inner: our letters behind the leading
    ones that `index` fixes. sizes: of every letter.
    """

    path: str
    index: Index
    groups: tuple[str, ...]
    inner: str
    sizes: Mapping[str, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in their tensor."""
        return tuple(math.prod(self.sizes[x] for x in group) for group in self.groups)

    @property
    def ours(self) -> tuple[int, ...]:
        """The shape of our array, or of its layer or expert."""
        return tuple(self.sizes[x] for x in self.inner)

    def to_theirs(self, x: Array) -> Array:
        """Our axes -> theirs; a view where it can be one."""
        order = [self.inner.index(letter) for letter in "".join(self.groups)]
        return x.transpose(order).reshape(self.shape)

    def to_ours(self, x: Array) -> Array:
        """The inverse of `to_theirs`."""
        flat = "".join(self.groups)
        order = [flat.index(letter) for letter in self.inner]
        return x.reshape([self.sizes[letter] for letter in flat]).transpose(order)


@dataclass(frozen=True)
class Tensor:
    """One tensor of theirs: its name, its shape, and the parts that it is made of, in order."""

    name: str
    parts: tuple[Part, ...]
    join: str
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        first, *others = (p.shape for p in self.parts)
        joined = first[self.axis] + sum(s[self.axis] for s in others)
        return (*first[: self.axis], joined, *first[self.axis + 1 :])

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    def gather(self, read: Read) -> Array:
        """The tensor from our arrays; in their dtype, C order not promised."""
        found = [p.to_theirs(read(p.path, p.index)) for p in self.parts]
        if len(found) == 1:
            return found[0]
        if self.join == "heads":
            heads = self._heads
            split = [x.reshape(heads, -1, *x.shape[1:]) for x in found]
            return np.concatenate(split, axis=1).reshape(self.shape)
        return np.concatenate(found, axis=self.axis)

    def scatter(self, tensor: Array) -> Iterator[tuple[Part, Array]]:
        """Each part with what the tensor holds of our array. ValueError unless it has the shape that it must have."""
        if tensor.shape != self.shape:
            raise ValueError(f"{self.name} has shape {list(tensor.shape)}, {list(self.shape)} is expected")
        if self.join == "heads" and len(self.parts) > 1:
            heads = self._heads
            rows = tensor.reshape(heads, -1, *tensor.shape[1:])
            ends = np.cumsum([p.shape[0] // heads for p in self.parts])
            pieces = np.split(rows, ends[:-1], axis=1)
            for part, piece in zip(self.parts, pieces, strict=True):
                yield part, part.to_ours(piece.reshape(part.shape))
            return
        ends = np.cumsum([p.shape[self.axis] for p in self.parts])
        for part, piece in zip(self.parts, np.split(tensor, ends[:-1], axis=self.axis), strict=True):
            yield part, part.to_ours(piece)

    @property
    def _heads(self) -> int:
        return self.parts[0].sizes[self.parts[0].groups[0][0]]


def tensors_of(maps: Sequence[Map], shapes: Mapping[str, Sequence[int]]) -> tuple[Tensor, ...]:
    """All tensors of theirs that a model with arrays of these shapes has: those outside of layers first, then the
    layers one after another, in the order of the table.

    AssertionError where a table names an array that is not there, leaves one out, or has one twice.
    """
    used = [path for m in maps for path in m.ours]
    if len(set(used)) < len(used) or set(used) != set(shapes):
        odd = sorted({p for p in used if used.count(p) > 1} | set(used) ^ set(shapes))
        raise AssertionError(f"{odd[0]}: a table has every array of the model once")
    outer = [m for m in maps if "{L}" not in m.theirs]
    layered = [m for m in maps if "{L}" in m.theirs]
    found = [t for m in outer for t in _tensors(m, shapes, 0)]
    layers = {int(shapes[m.ours[0]][0]) for m in layered}
    if len(layers) > 1:
        raise AssertionError(f"stacks of {sorted(layers)} layers")
    for layer in range(max(layers, default=0)):
        found += [t for m in layered for t in _tensors(m, shapes, layer)]
    names = [t.name for t in found]
    if len(set(names)) < len(names):
        raise AssertionError("two arrays are mapped to one tensor")
    return tuple(found)


def count_of(maps: Sequence[Map], shapes: Mapping[str, Sequence[int]]) -> int:
    """How many tensors `tensors_of` gives, without making them."""
    return sum(math.prod(shapes[m.ours[0]][: len(_leading(m))]) for m in maps)


def _leading(m: Map) -> str:
    """The axes of ours of which they keep a tensor for each entry."""
    return "L" * ("{L}" in m.theirs) + "E" * ("{E}" in m.theirs)


def _tensors(m: Map, shapes: Mapping[str, Sequence[int]], layer: int) -> Iterator[Tensor]:
    leading = _leading(m)
    experts = int(shapes[m.ours[0]][1]) if "E" in leading else 1
    for expert in range(experts):
        index = tuple({"L": layer, "E": expert}[x] for x in leading)
        parts = tuple(
            _part(path, index, leading, layout, shapes[path]) for path, layout in zip(m.ours, m.layouts, strict=True)
        )
        tensor = Tensor(
            m.theirs.replace("{L}", str(layer)).replace("{E}", str(expert)), parts, m.join, _axis(m, parts[0])
        )
        _check(tensor)
        yield tensor


def _axis(m: Map, part: Part) -> int:
    """Along which axis of their tensor its parts follow one another."""
    match m.join:
        case "columns":
            return len(part.groups) - 1
        case "rows" | "heads":
            return 1 if part.groups[0] == "E" and len(part.groups) > 1 else 0


def _part(path: str, index: Index, leading: str, layout: str, shape: Sequence[int]) -> Part:
    ours = letters(path, len(shape))
    groups = tuple(a or b for a, b in _GROUP.findall(layout))
    inner = ours[len(leading) :]
    if not ours.startswith(leading) or sorted("".join(groups)) != sorted(inner):
        raise AssertionError(f"{path} has axes {ours}; {layout!r} is not what is left of them without {leading!r}")
    return Part(path, index, groups, inner, dict(zip(ours, map(int, shape), strict=True)))


def _check(tensor: Tensor) -> None:
    rest = {s[: tensor.axis] + s[tensor.axis + 1 :] for s in (p.shape for p in tensor.parts)}
    if len(rest) > 1:
        raise AssertionError(f"{tensor.name}: its parts do not fit together: {[p.shape for p in tensor.parts]}")
    if tensor.join == "heads" and len({p.sizes[p.groups[0][0]] for p in tensor.parts}) > 1:
        raise AssertionError(f"{tensor.name}: parts with different numbers of heads cannot alternate")
