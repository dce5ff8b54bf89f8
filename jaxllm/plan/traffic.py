"""Bytes between a device and its memory in a compiled step, counted from what its instructions read and write. No jax.

A fusion reads its operands and writes its results and nothing between. What it takes a slice of, it reads the slice of;
what it updates in place, it writes the update of. Arrays that TPU keeps in its faster memory are free.
"""

from collections.abc import Callable, Iterable

from jaxllm.plan.hlo import Instruction, Leaf, Module, called, elements, leaves

Scope = dict[str, Instruction]

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "opt-barrier", "optimization-barrier", "partition-id", "replica-id", "domain", "add-dependency",
}  # fmt: skip
_SLICING = ("dynamic-slice", "slice", "gather")
_PASSING = ("bitcast", "copy", "reshape", "get-tuple-element")


def memory_bytes(module: Module, spaces: Iterable[int] = (0,)) -> float:
    """Bytes read and written in a step by one device, in the memory spaces that are its main memory."""
    main = frozenset(spaces)

    def size(found: Iterable[Leaf]) -> float:
        return sum(leaf.bytes for leaf in found if leaf.space in main)

    total = 0.0
    for run in module.runs():
        if not run.fused:
            scope = module.computations[run.computation]
            total += run.times * _moved(run.instruction, scope, module, size)
    return total


Size = Callable[[Iterable[Leaf]], float]


def _moved(one: Instruction, scope: Scope, module: Module, size: Size) -> float:
    if one.op in _FREE or one.op.endswith(("-done", "-update")):
        return 0.0
    given = [scope[name] for name in one.operands if name in scope]
    match one.op:
        case "fusion":
            body = module.computations[called(one)[0]]
            return _read(body, given, size) + _written(body, one.type, size)
        case "fusion-start":  # as GPUs have them from jax 0.11 on: ((what it is given), what it gives, context)
            body = module.computations[called(one)[0]]
            return _read(body, given, size) + _written(body, elements(one.type)[1], size)
        case "dynamic-slice" | "slice" | "gather":
            return 2 * size(one.leaves)
        case "dynamic-update-slice":
            return 2 * size(given[1].leaves) if len(given) > 1 else size(one.leaves)
        case "copy-start":  # (there, here, context)
            return size(leaves(elements(one.type)[0])) + sum(size(g.leaves) for g in given)
        case "async-start":
            body = module.computations[called(one)[0]]
            return _read(body, given, size) + size(leaves(elements(one.type)[1]))
        case "custom-call" if "AllocateBuffer" in one.attributes or "Bitcast" in one.attributes:
            return 0.0
        case op if op.endswith("-start") and len(parts := elements(one.type)) > 1:
            return size(leaves(parts[1])) + sum(size(g.leaves) for g in given)
        case _:
            return size(one.leaves) + sum(size(g.leaves) for g in given)


def _read(body: Scope, given: list[Instruction], size: Size) -> float:
    """What a fusion reads of its operands."""
    total = 0.0
    for one in body.values():
        if one.op == "parameter" and int(one.literal) < len(given):
            whole = size(given[int(one.literal)].leaves)
            total += min(whole, _used(body, one, whole, size))
    return total


def _used(body: Scope, one: Instruction, whole: float, size: Size) -> float:
    """Bytes of `one`, of `whole` bytes, that its users look at."""
    total = 0.0
    for user in body.values():
        if one.name not in user.operands:
            continue
        if user.op in _SLICING and user.operands[0] == one.name:
            total += user.bytes if whole else 0.0
        elif user.op == "dynamic-update-slice" and user.operands[0] == one.name:
            continue  # updated in place
        elif user.op in _PASSING:
            total += _used(body, user, whole, size)
        else:
            return whole
    return total


def _written(body: Scope, given: str, size: Size) -> float:
    """What a fusion that gives this type writes of its results."""
    root = next(one for one in body.values() if one.root)
    results = [body[name] for name in root.operands] if root.op == "tuple" else [root]
    parts = elements(given)
    if len(parts) != len(results):
        return size(leaves(given))
    total = 0.0
    for part, result in zip(parts, results, strict=True):
        while result.op in ("bitcast", "copy") and result.operands and result.operands[0] in body:
            result = body[result.operands[0]]
        whole = size(leaves(part))
        if result.op == "dynamic-update-slice" and len(result.operands) > 1:
            total += min(whole, body[result.operands[1]].bytes)
        else:
            total += whole
    return total
