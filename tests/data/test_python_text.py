"""Prose and code of the user's own Python: parsed, apart from each other, the same on every machine."""

import ast
import subprocess
import sys
from collections import Counter

import pytest

from jaxllm.core.errors import DataError
from jaxllm.data import python_text
from jaxllm.data.python_text import code, decode, library_files, module_name, prose, words

LONG = "This says in more than sixteen words what the thing is for, " * 3

SAMPLE = f'''\
"""{LONG}"""
import os

class A(Exception):
    """{LONG} of A

        indented
    not
    """

class B:
    """Short."""

    def f(self):
        """{LONG} of f"""  # a remark
        return 1

    if os.name == "nt":
        async def g(self): "{LONG} of g"
    else:
        async def g(self):
            """{LONG} of g
            >>> 1 + 1
            """
            try:
                pass
            finally:
                def inner():
                    "{LONG} of inner"
'''


def test_prose_is_named_placed_and_dedented() -> None:
    found = list(prose(SAMPLE, "m"))
    assert [(p.id, p.line) for p in found] == [("m", 1), ("m:A", 5), ("m:B.g", 22), ("m:B.g.inner", 29)]
    assert found[1].text == f"{LONG} of A\n\n    indented\nnot"


def test_code_is_the_rest_and_still_parses() -> None:
    rest = code(SAMPLE)
    tree = ast.parse(rest)
    assert rest.startswith("import os\n\nclass A(Exception):\n    pass\n\nclass B:\n    " + '"""Short."""')
    assert rest.count(LONG) == 2  # those that share a line with something else are in neither way prose
    assert {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)} == {"f", "inner"}
    assert not list(prose(rest, "m"))


def test_words_leave_doctests_out() -> None:
    assert words("one two\n>>> three\n    ... four\nfive 6 seven_eight") == 5


def test_topics_are_read_as_literals() -> None:
    source = "# text\ntopics = {'with': 'The statement ' 'with.\\n', 'if': r'\\if'}\n"
    found = list(prose(source, "pydoc_data.topics"))
    assert [(p.id, p.text) for p in found] == [
        ("pydoc_data.topics:with", "The statement with."),
        ("pydoc_data.topics:if", "\\if"),
    ]
    with pytest.raises(SyntaxError):
        list(prose("topics = {'a': open('/etc/passwd').read()}", "pydoc_data.topics"))


def test_declared_encodings() -> None:
    assert decode("# coding: latin-1\r\nx = 'é'\r\n".encode("latin-1")) == "# coding: latin-1\nx = 'é'\n"
    assert decode(b"\xef\xbb\xbfx = 1\n") == "x = 1\n"
    with pytest.raises(SyntaxError):
        decode(b"x = '\xe9'\n")


def test_module_names() -> None:
    assert [module_name(n) for n in ("json/decoder.py", "json/__init__.py", "abc.py", "__init__.py")] == [
        "json.decoder",
        "json",
        "abc",
        "__init__",
    ]


def test_library_files_are_relative_sorted_and_without_tests() -> None:
    names = [name for name, _ in library_files("code")]
    assert names == sorted(names) and len(set(names)) == len(names)
    assert {"json/decoder.py", "abc.py", "asyncio/events.py"} <= set(names)
    assert not [n for n in names if n.startswith(("/", "test/", "encodings/", "_sysconfig")) or "/test" in n]
    topics = "pydoc_data/topics.py"
    assert topics not in names and topics in [name for name, _ in library_files("prose")]


def test_no_library_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="no modules"):
        library_files("code")


@pytest.mark.slow
def test_a_sixth_of_the_library() -> None:
    passages, total = [], 0
    for name, path in library_files("code")[::6]:
        source = decode(path.read_bytes())
        mine = list(prose(source, module_name(name)))
        rest = code(source)
        ast.parse(rest)
        assert not list(prose(rest, "m")), name
        total += len(rest)
        passages += mine
    assert len(passages) > 300 and sum(len(p.text) for p in passages) > 10**5 and total > 5 * 10**5
    assert min(words(p.text) for p in passages) >= python_text.PROSE_WORDS
    assert max(Counter(p.id for p in passages).values()) < 10


def test_modules_are_never_imported() -> None:
    program = (
        "import sys; from jaxllm.data.python_text import *\n"
        "for n, p in library_files('prose'):\n"
        "    if n in ('this.py', 'antigravity.py', 'pydoc_data/topics.py'):\n"
        "        list(prose(decode(p.read_bytes()), module_name(n)))\n"
        "assert not {'this', 'antigravity', 'pydoc_data.topics', 'jax', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
