"""Opening what a person names."""

from pathlib import Path

import pytest

from jaxllm.core.errors import ConfigError
from jaxllm.core.load import call_config, saved_json


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_function_is_called_by_name_by_file_name_or_because_it_is_the_only_one(tmp_path: Path) -> None:
    two = write(tmp_path, "two.py", "def two():\n    return 2\ndef other():\n    return 3\n")
    one = write(tmp_path, "single.py", "from math import floor\ndef anything():\n    return 1\n")
    assert call_config(f"{two}:other") == 3
    assert call_config(two) == 2
    assert call_config(one) == 1


def test_configs_of_a_package_can_import_each_other(tmp_path: Path) -> None:
    write(tmp_path, "recipes_a/__init__.py", "")
    write(tmp_path, "recipes_a/base.py", "def base():\n    return 40\n")
    path = write(tmp_path, "recipes_a/more.py", "from recipes_a.base import base\ndef more():\n    return base() + 2\n")
    assert call_config(path) == 42


@pytest.mark.parametrize(
    ("name", "text", "target", "says"),
    [
        ("a.py", "def train_it():\n    pass\n", "a.py:trainit", "did you mean 'train_it'"),
        ("b.py", "def x():\n    pass\ndef y():\n    pass\n", "b.py", "say which"),
        ("c.py", "import no_such_module_here\n", "c.py:x", "No module named"),
        ("d.py", "def x(:\n", "d.py:x", "SyntaxError"),
        ("e.py", "", "missing.py:x", "no such file"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, name: str, text: str, target: str, says: str) -> None:
    write(tmp_path, name, text)
    with pytest.raises(ConfigError, match=says):
        call_config(str(tmp_path / target))


def test_saved_runs_are_recognized(tmp_path: Path) -> None:
    path = write(tmp_path, "r/run.json", '{"schema": 1}')
    assert saved_json(path) == ({"schema": 1}, tmp_path / "r")
    assert saved_json(str(tmp_path / "r")) == ({"schema": 1}, tmp_path / "r")
    assert saved_json("configs/quickstart.py:quickstart") is None


@pytest.mark.parametrize(("make", "says"), [("{", "not JSON"), (None, "without run.json")])
def test_broken_saved_runs_are_named(tmp_path: Path, make: str | None, says: str) -> None:
    if make is not None:
        write(tmp_path, "run.json", make)
    with pytest.raises(ConfigError, match=says):
        saved_json(str(tmp_path))
