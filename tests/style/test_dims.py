"""Array names: capital suffixes from the legend of jaxllm/core/dims.py, and the same letters in einsum strings."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxllm.core.dims import DIMENSIONS

ROOT = Path(__file__).resolve().parents[2]

# x_BSD, grad_w_DF, _q_BSHK; x_BsD holds some of the positions; sum_BS1 keeps a dimension of size 1. MAX_LEN is none.
ARRAY_NAME = re.compile(r"_*[a-z][a-z0-9_]*_([A-Z][A-Za-z0-9]*)")


def suffix(name: str) -> str | None:
    """The dimension letters at the end of an array's name as capitals, with its digits; None if it has none."""
    match = ARRAY_NAME.fullmatch(name)
    return match[1].upper() if match else None


def foreign(letters: str) -> str:
    return "".join(sorted(set(letters) - set(DIMENSIONS) - set("0123456789")))


def foreign_letters(source: str) -> list[str]:
    """Names and einsum strings with letters that the legend does not have."""
    wrong = []
    for node in ast.walk(ast.parse(source)):
        for name in _names(node):
            if unknown := foreign(suffix(name) or ""):
                wrong.append(f"{_line(node)}: {name}: {unknown} is not in the legend")
        if isinstance(node, ast.Call) and (text := _einsum(node)) is not None:
            unknown = foreign(re.sub(r"[,\s]|->|\.\.\.", "", text))
            if unknown:
                wrong.append(f"{_line(node)}: {text!r}: {unknown} is not in the legend")
    return wrong


def crossed_einsums(source: str) -> list[str]:
    """einsum calls in which an operand's or the result's name says other letters than the string."""
    wrong = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case (
                ast.Assign(targets=[target], value=ast.Call() as call)
                | ast.AnnAssign(target=target, value=ast.Call() as call)
            ):
                wrong += _crossed(call, target, (_einsum(call) or "").partition("->")[2])
            case ast.Call():
                terms = (_einsum(node) or "").partition("->")[0].split(",")
                wrong += [w for a, term in zip(node.args[1:], terms, strict=False) for w in _crossed(node, a, term)]
            case _:
                pass
    return wrong


def _crossed(call: ast.Call, array: ast.expr, term: str) -> list[str]:
    names = _names(array)
    letters, term = suffix(names[0]) if names else None, term.strip()
    if _einsum(call) is None or letters is None or not letters.isalpha() or "." in term or letters == term:
        return []
    return [f"{_line(call)}: {names[0]} stands for {term!r}"]


def _names(node: ast.AST) -> list[str]:
    match node:
        case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name) | ast.FunctionDef(name=name):
            return [name]
        case ast.keyword(arg=str(name)):
            return [name]
        case _:
            return []


def _einsum(call: ast.Call) -> str | None:
    match call:
        case ast.Call(
            func=ast.Attribute(attr="einsum") | ast.Name(id="einsum"), args=[ast.Constant(value=str(text)), *_]
        ):
            return text
        case _:
            return None


def _line(node: ast.AST) -> str:
    return f"line {getattr(node, 'lineno', '?')}"


@pytest.mark.parametrize("check", [foreign_letters, crossed_einsums])
def test_names_of_arrays(check: Callable[[str], list[str]]) -> None:
    found = [
        f"{path.relative_to(ROOT)} {line}"
        for package in ("jaxllm", "configs", "tools")
        for path in sorted((ROOT / package).rglob("*.py"))
        for line in check(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_the_legend_is_one_capital_letter_each() -> None:
    assert all(re.fullmatch("[A-Z]", letter) and meaning for letter, meaning in DIMENSIONS.items())
    # The letters of the published notation; removing one breaks the names that use it.
    assert set("BSTDHGRKFVECLPN") <= set(DIMENSIONS)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("y_BXD = x_BSD", "y_BXD: X is not"),
        ("def f(w_DQ): pass", "w_DQ: Q is not"),
        ("self.w_DW = 1", "w_DW: W is not"),
        ("f(table_VZ=1)", "table_VZ: Z is not"),
        ("for x_BzD1 in y: pass", "x_BzD1: Z is not"),
        ("jnp.einsum('bsd,DF->BSF', a, b)", "bds is not"),
    ],
)
def test_finds_a_foreign_letter(source: str, words: str) -> None:
    assert [line for line in foreign_letters(source) if words in line], foreign_letters(source)


@pytest.mark.parametrize(
    "source", ["MAX_LEN = EXIT_OK", "q_BSGRK = q_BSHK", "x_bsd = half_K", "sum_BS1 = x_BsD", "__x = a.MAX_X", "K = D"]
)
def test_leaves_other_names_alone(source: str) -> None:
    assert foreign_letters(source) == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("y = jnp.einsum('BSD,DF->BSF', x_BSD, w_FD)", "w_FD stands for 'DF'"),
        ("y_BSD = jnp.einsum('BSD,DF->BSF', x, w)", "y_BSD stands for 'BSF'"),
        ("y = einsum('BSD,DF->BSF', x_BTD, self.w_DF)", "x_BTD stands for 'BSD'"),
    ],
)
def test_finds_a_crossed_einsum(source: str, words: str) -> None:
    assert [line for line in crossed_einsums(source) if words in line], crossed_einsums(source)


def test_leaves_sound_einsums_alone() -> None:
    assert crossed_einsums("y_BSF = jnp.einsum('BSD,DF->BSF', x_BSD, self.w_DF, precision=p)") == []
    assert crossed_einsums("total = jnp.einsum('...D,...D->...', x, y_BD)") == []
