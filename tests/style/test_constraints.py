"""Tested versions: complete, free of registries and paths, and the same for pip and uv."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.uv_constraints import all_constraints, read_constraints, requirements, with_block

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ["3.11", "3.12"]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def allowed(pins: list[str], python: str) -> dict[str, str]:
    """What uv's constraints come to on one Python: name -> exact version."""
    chosen: dict[str, str] = {}
    for requirement in map(Requirement, pins):
        if requirement.marker is None or requirement.marker.evaluate({"python_full_version": f"{python}.1"}):
            assert requirement.name not in chosen, f"{requirement.name} is pinned twice on {python}"
            chosen[requirement.name] = str(requirement.specifier).removeprefix("==")
    return chosen


def test_each_tested_python_has_a_file() -> None:
    assert list(all_constraints()) == PYTHONS


@pytest.mark.parametrize("python", PYTHONS)
def test_uv_takes_the_same_versions(python: str) -> None:
    assert allowed(project()["tool"]["uv"]["constraint-dependencies"], python) == all_constraints()[python]


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_is_pinned_within_its_bounds(python: str) -> None:
    pins = all_constraints()[python]
    declared = project()["project"]
    for text in declared["dependencies"] + declared["optional-dependencies"]["test"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text


def test_build_tool_is_the_tested_one() -> None:
    [pin] = project()["tool"]["uv"]["build-constraint-dependencies"]
    assert {f"setuptools=={pins['setuptools']}" for pins in all_constraints().values()} == {pin}


def test_newer_pythons_get_the_newest_tested_versions() -> None:
    pins = requirements({"3.11": {"jax": "1"}, "3.12": {"jax": "2"}})
    assert pins == ["jax==1 ; python_full_version < '3.12'", "jax==2 ; python_full_version >= '3.12'"]
    assert [allowed(pins, python)["jax"] for python in ("3.11", "3.12", "3.13")] == ["1", "2", "2"]


def test_a_changed_pin_is_seen() -> None:
    pins = all_constraints()
    pins["3.12"]["jax"] = "9.9"
    text = (ROOT / "pyproject.toml").read_text()
    assert with_block(text, requirements(all_constraints())) == text
    assert with_block(text, requirements(pins)) != text


@pytest.mark.parametrize(
    "line", ["jax @ file:///wheels/jax.whl", "--index-url https://example.org/simple", "jax>=0.10", "Jax==1"]
)
def test_only_exact_versions_are_accepted(line: str, tmp_path: Path) -> None:
    path = tmp_path / "constraints-3.11.txt"
    path.write_text(f"# comment\nnumpy==2.4.6\n{line}\n")
    with pytest.raises(ValueError, match=re.escape(line)):
        read_constraints(path)
