"""Carry the tested versions of launch/constraints-*.txt into [tool.uv] of pyproject.toml: uv does not drift either.

python tools/uv_constraints.py            rewrite the block
python tools/uv_constraints.py --check    exit 1 if it disagrees with the files
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "# tested versions: written by tools/uv_constraints.py\n", "# end of tested versions\n"


def read_constraints(path: Path) -> dict[str, str]:
    """Package name -> pinned version, from lines `name==version`; anything else in the file is an error."""
    pins: dict[str, str] = {}
    for line in path.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"([a-z0-9-]+)==([A-Za-z0-9.+!]+)", line)
        if match is None:
            raise ValueError(f"{path.name}: {line!r} is not name==version with a lower-case name")
        pins[match[1]] = match[2]
    return pins


def all_constraints(root: Path = ROOT) -> dict[str, dict[str, str]]:
    """Python version ("3.11") -> its pins, oldest first."""
    found = {p.stem.removeprefix("constraints-"): p for p in (root / "launch").glob("constraints-*.txt")}
    return {v: read_constraints(found[v]) for v in sorted(found, key=lambda v: tuple(map(int, v.split("."))))}


def requirements(pins: Mapping[str, Mapping[str, str]]) -> list[str]:
    """One requirement per package, or one per Python version where they differ.

    The first file also serves older Pythons and the last newer ones.
    """
    versions = list(pins)
    lines = []
    for name in sorted({n for p in pins.values() for n in p}):
        if len({p.get(name) for p in pins.values()}) == 1:
            lines.append(f"{name}=={pins[versions[0]][name]}")
            continue
        for i, version in enumerate(versions):
            if name not in pins[version]:
                continue
            above = [f"python_full_version >= '{version}'"] if i else []
            below = [f"python_full_version < '{versions[i + 1]}'"] if i + 1 < len(versions) else []
            lines.append(f"{name}=={pins[version][name]} ; {' and '.join(above + below)}")
    return lines


def with_block(text: str, lines: list[str]) -> str:
    """The text of a pyproject.toml with its block replaced by these requirements."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"pyproject.toml has no lines {BEGIN.strip()!r} and {END.strip()!r}")
    block = "constraint-dependencies = [\n" + "".join(f'  "{x}",\n' for x in lines) + "]\n"
    build = [x for x in lines if x.startswith("setuptools==")]
    block += "build-constraint-dependencies = [" + ", ".join(f'"{x}"' for x in build) + "]\n"
    return head + BEGIN + block + END + tail


def main() -> int:
    path = ROOT / "pyproject.toml"
    text = path.read_text()
    wanted = with_block(text, requirements(all_constraints()))
    if "--check" in sys.argv[1:]:
        if text != wanted:
            print(
                "pyproject.toml [tool.uv] disagrees with launch/constraints-*.txt; run python tools/uv_constraints.py"
            )
        return int(text != wanted)
    path.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
