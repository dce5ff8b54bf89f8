"""Runs at an address: what only looks at a record works through a copy of it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from typer.testing import CliRunner

from jaxllm.cli import app as commands
from jaxllm.core.errors import EXIT_DONE, JaxllmError, RunError
from jaxllm.fetching import at_hand

OLD = Path(__file__).parent / "golden" / "run_schema1"
THERE = "memory://bucket/runs/old"


@pytest.fixture
def remote() -> Iterator[fsspec.AbstractFileSystem]:
    """A run at THERE."""
    files = fsspec.filesystem("memory")
    files.put(f"{OLD}/", "/bucket/runs/old/", recursive=True)
    yield files
    files.rm("/bucket", recursive=True)


def test_the_record_is_fetched_and_nothing_is_left(remote: fsspec.AbstractFileSystem) -> None:
    with at_hand(THERE) as folder:
        ours = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        assert folder.name == "old"
    assert not folder.exists() and not list(Path(tempfile.gettempdir()).glob(f"{folder.parent.name}*"))
    assert {"journal.jsonl", "run.json", "steps/000000.jsonl", "losses/0/sum/zarr.json"} <= ours.keys()
    assert not any(name.startswith("checkpoints") for name in ours)
    assert all((OLD / name).read_bytes() == data for name, data in ours.items())


def test_commands_say_of_it_what_they_say_of_the_run_itself(remote: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        done = CliRunner().invoke(commands, list(arguments))
        assert done.exit_code == EXIT_DONE, done.output
        return done.stdout

    assert said("journal", THERE) == said("journal", str(OLD))
    for run, page in ((THERE, "a.html"), (str(OLD), "b.html")):
        said("report", run, "--out", str(tmp_path / page))
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert "bitwise" in said("compare", THERE, str(OLD), "--expect", "bitwise")


def test_a_folder_is_taken_as_it_is() -> None:
    with at_hand("runs/x") as folder:
        assert folder == Path("runs/x")


@pytest.mark.parametrize(
    ("address", "words"),
    [("memory://bucket/runs/none", "is no run: it has no journal"), ("nowhere://x", "Protocol not known: nowhere")],
)
def test_what_cannot_be_fetched_is_said(address: str, words: str) -> None:
    with pytest.raises(RunError, match=words), at_hand(address):
        pass


def test_names_do_not_lead_out_of_the_copy(remote: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(remote), "find", lambda self, path, **_: [f"{path}/../../../evil"])
    with pytest.raises(RunError, match="does not lie in the run"), at_hand(THERE):
        pass


def test_a_report_of_it_needs_a_place(remote: fsspec.AbstractFileSystem) -> None:
    done = CliRunner().invoke(commands, ["report", THERE])
    assert isinstance(done.exception, JaxllmError) and "--out FILE" in str(done.exception)
