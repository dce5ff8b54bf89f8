"""Who imports whom, read from the source: nothing is imported to find out."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """One import statement's target, as `importer` (a module of `file`) sees it.

    `module` is the longest dotted name that can be told from the statement: a file of the tree where one exists
    (`from jaxllm.core import errors` is jaxllm.core.errors), else the name as written. `top` is true if importing the
    file runs the statement: it stands outside functions and outside `if TYPE_CHECKING`.
    """

    importer: str
    file: Path
    line: int
    module: str
    top: bool


@dataclass(frozen=True)
class Tree:
    """Modules (dotted name -> file; a package is its __init__.py) and every import in them."""

    modules: Mapping[str, Path]
    imports: list[Import]


def read(root: Path, *packages: str) -> Tree:
    """The packages that lie in `root`."""
    modules = {}
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return Tree(modules, [i for name in modules for i in _imports_of(name, modules)])


def cycle(tree: Tree) -> list[str]:
    """One import cycle as a list of modules whose first is its last, or [] if there is none."""
    edges: dict[str, set[str]] = {name: set() for name in tree.modules}
    for i in tree.imports:
        if i.module in edges:
            edges[i.importer].add(i.module)
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(edges[name]):
            if found := walk(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(edges) if (found := walk(name, []))), [])


def starts(tree: Tree, module: str) -> dict[str, list[str]]:
    """What importing `module` starts: each package outside the tree -> a chain of modules that leads to it."""
    ran = [i for i in tree.imports if i.top]
    reached: dict[str, list[str]] = {}
    outside: dict[str, list[str]] = {}
    queue = [[module]]
    while queue:
        chain = queue.pop(0)
        if chain[-1] in reached:
            continue
        reached[chain[-1]] = chain
        # Importing a.b.c runs a/__init__.py and a/b/__init__.py too.
        parents = [".".join(chain[-1].split(".")[:n]) for n in range(1, chain[-1].count(".") + 1)]
        queue += [[*chain, p] for p in parents if p in tree.modules]
        for i in ran:
            if i.importer != chain[-1]:
                continue
            if i.module in tree.modules:
                queue.append([*chain, i.module])
            else:
                outside.setdefault(i.module.partition(".")[0], chain)
    return outside


def _imports_of(name: str, modules: Mapping[str, Path]) -> Iterator[Import]:
    path = modules[name]
    source = ast.parse(path.read_text(encoding="utf-8"), str(path))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node, top in _statements(source, True):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, path, node.lineno, alias.name, top)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join(parents[: len(parents) - node.level + 1] + ([base] if base else []))
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield Import(name, path, node.lineno, full if full in modules else base, top)


def _statements(node: ast.AST, top: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        yield child, top
        deferred = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield from _statements(child, top and not deferred and not typing_only)
