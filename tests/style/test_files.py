"""What holds for every file that people read."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("jaxllm", "configs", "launch", "tests", "tools", ".ci")
MOST_LINES = 500

# A home folder of some machine; a sample path in a test says /tmp or /data.
MACHINE_PATH = re.compile(r"/(?:root|home|Users)/\w")


def files() -> list[Path]:
    """Every text file of the checkout that belongs to the project."""
    found = [p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*")) if p.is_file()]
    found += [p for p in sorted(ROOT.iterdir()) if p.suffix in (".md", ".toml")]
    texts = {".py", ".sh", ".sbatch", ".yaml", ".toml", ".txt", ".md", ""}
    stored = ("__pycache__", "run_schema1")  # a stored run is data
    return [p for p in found if p.suffix in texts and not any(part in stored for part in p.parts)]


def too_long(text: str) -> bool:
    return text.count("\n") > MOST_LINES


def test_no_file_is_longer_than_a_person_reads() -> None:
    programs = [p for p in files() if p.suffix in (".py", ".sh", ".sbatch", "")]
    assert [str(p.relative_to(ROOT)) for p in programs if too_long(p.read_text(encoding="utf-8"))] == []


def test_no_file_names_a_folder_of_one_machine() -> None:
    found = [str(p.relative_to(ROOT)) for p in files() if MACHINE_PATH.search(p.read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.parametrize(("lines", "verdict"), [(MOST_LINES, False), (MOST_LINES + 1, True)])
def test_length_is_counted_in_lines(lines: int, verdict: bool) -> None:
    assert too_long("x\n" * lines) is verdict


@pytest.mark.parametrize(
    ("text", "verdict"), [("cd /ho" + "me/ann/x", True), ("/ro" + "ot/x", True), ("https://a.b/home", False)]
)
def test_machine_paths_are_recognised(text: str, verdict: bool) -> None:
    assert bool(MACHINE_PATH.search(text)) is verdict
