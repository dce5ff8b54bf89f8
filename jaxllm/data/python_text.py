"""Text that is always at hand: prose and code of the running Python's own standard library (PSF-2.0).

Modules are parsed, never imported. *Prose* is the docstrings that hold more than a few words, and the language
reference of pydoc_data.topics; *code* is the modules without those docstrings, so that what is held out of one source
is not met in the other. Files are named relative to the standard library: two machines with the same Python have the
same documents.
"""

import ast
import inspect
import io
import os
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from jaxllm.core.errors import DataError

# A docstring is prose if it has this many words outside of its doctests: shorter ones say little more than a name does.
PROSE_WORDS = 16

# Tests, demonstrations, programs, and what depends on the machine rather than on the version.
_SKIPPED_FOLDERS = frozenset(
    (
        "test",
        "tests",
        "idle_test",
        "idlelib",
        "turtledemo",
        "encodings",
        "site-packages",
        "dist-packages",
        "__pycache__",
    )
)
_SKIPPED_FILES = frozenset({"sitecustomize.py", "usercustomize.py", "html/entities.py", "pydoc_data/__init__.py"})
_TOPICS = "pydoc_data/topics.py"

_WORD = re.compile(r"[A-Za-z]{2,}")
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Passage(NamedTuple):
    """A piece of prose: the line where it begins, the text, and a name such as `json.decoder:JSONDecoder.decode`."""

    line: int
    text: str
    id: str


class Docstring(NamedTuple):
    name: str  # qualified name within the module; empty for the module's own
    node: ast.Expr
    owner: _Documented
    text: str


def library_files(kind: Literal["prose", "code"]) -> list[tuple[str, Path]]:
    """(name relative to the standard library, path) of the modules to read, sorted by name."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, inner, files in os.walk(root):
        inner[:] = [d for d in inner if d not in _SKIPPED_FOLDERS and not d.startswith(("config-", "."))]
        for file in files:
            name = (Path(folder) / file).relative_to(root).as_posix()
            if not name.endswith(".py") or name in _SKIPPED_FILES or file.startswith("_sysconfigdata"):
                continue
            if name != _TOPICS or kind == "prose":
                found.append((name, Path(folder) / file))
    if not found:
        raise DataError(f"{root}: no modules of the standard library; install Python with its sources (.py)")
    return sorted(found)


def module_name(origin: str) -> str:
    """`json/decoder.py` -> `json.decoder`, `json/__init__.py` -> `json`."""
    parts = PurePosixPath(origin).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def decode(raw: bytes) -> str:
    """The text of a module in the encoding that it declares, with plain line ends. SyntaxError if it is none."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
        return raw.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as err:
        raise SyntaxError(f"not {err.encoding} at byte {err.start}") from None


def prose(source: str, module: str) -> Iterator[Passage]:
    """The passages of prose in a module, in the order of their lines. SyntaxError if it is not Python."""
    if module == "pydoc_data.topics":
        yield from _topics(_parse(source), module)
        return
    for doc in docstrings(source):
        yield Passage(doc.node.lineno, doc.text, f"{module}:{doc.name}" if doc.name else module)


def code(source: str) -> str:
    """The module without the docstrings that `prose` finds; `pass` takes the place of one that is a whole body."""
    lines: list[str | None] = list(source.split("\n"))
    for doc in docstrings(source):
        first, last = doc.node.lineno - 1, doc.node.end_lineno or doc.node.lineno
        indent = (lines[first] or "")[: doc.node.col_offset]  # blanks, so that bytes and characters are the same
        lines[first:last] = [None] * (last - first)
        if len(doc.owner.body) == 1 and not isinstance(doc.owner, ast.Module):
            lines[first] = f"{indent}pass"
    return "\n".join(line for line in lines if line is not None).lstrip("\n")


def docstrings(source: str) -> list[Docstring]:
    """The docstrings that hold enough prose and share their lines with nothing, dedented, by line."""
    tree, lines = _parse(source), source.split("\n")
    found = []
    pending: list[tuple[str, _Documented]] = [("", tree)]
    while pending:
        name, owner = pending.pop()
        first = owner.body[0] if owner.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            text = inspect.cleandoc(first.value.value).strip()
            if words(text) >= PROSE_WORDS and _is_text(text) and _stands_alone(first, lines):
                found.append(Docstring(name, first, owner, text))
        blocks: list[ast.AST] = list(owner.body)
        while blocks:
            node = blocks.pop()
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                pending.append((f"{name}.{node.name}" if name else node.name, node))
            elif isinstance(node, (ast.stmt, ast.ExceptHandler, ast.match_case)):
                for field in ("body", "orelse", "handlers", "finalbody", "cases"):
                    blocks += getattr(node, field, ())
    return sorted(found, key=lambda d: d.node.lineno)


def _stands_alone(node: ast.Expr, lines: list[str]) -> bool:
    """Whether nothing shares the lines of a statement. Columns of the parser are bytes of UTF-8."""
    head = lines[node.lineno - 1].encode()[: node.col_offset]
    tail = lines[(node.end_lineno or node.lineno) - 1].encode()[node.end_col_offset :]
    return not head.strip() and not tail.strip()


def words(text: str) -> int:
    """Words outside of the doctests of a text."""
    return sum(len(_WORD.findall(x)) for x in text.splitlines() if not x.lstrip().startswith((">>>", "...")))


def _topics(tree: ast.Module, module: str) -> Iterator[Passage]:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(t, ast.Name) and t.id == "topics" for t in targets) and isinstance(node, ast.Assign):
            try:
                topics = ast.literal_eval(node.value)
            except ValueError as err:
                raise SyntaxError(f"topics is not a literal: {err}") from None
            places = node.value.keys if isinstance(node.value, ast.Dict) else []
            for (name, text), place in zip(topics.items(), places, strict=True):
                yield Passage(place.lineno if place else 1, text.strip(), f"{module}:{name}")


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and the like are not ours to report
        return ast.parse(source)


def _is_text(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)
