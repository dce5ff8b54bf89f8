"""Runs that were changed afterwards, or in which something went wrong unseen, narrowed down to what it was."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jaxllm.checkpoint.layout import step_folder
from jaxllm.cli import app as commands
from jaxllm.core.config import encode
from jaxllm.core.errors import EXIT_CHECK_FAILED, EXIT_DONE
from jaxllm.ledger.segments import DIGITS
from jaxllm.release.bisected import bisect_interval
from jaxllm.release.outcome import bisect_run, bisected_lines
from jaxllm.release.verdict import Kind
from jaxllm.workspace import open_run
from tests.release.forging import journal_digest, of_step, other_array, reforged, steps_file
from tests.trained import KEPT, golden, trained

pytestmark = pytest.mark.slow

FLIP = 'faults=[{"kind":"BitFlip","step":16,"parameter":"blocks.attention.q","index":[0,1,1,1],"bit":20}]'


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bisect")


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """Checkpoints 8, 16, 24, 32, 40."""
    return trained(*golden(place, KEPT))


@pytest.fixture(scope="module")
def flipped(place: Path) -> Path:
    """A bit of a parameter flips before step 16, which nobody was told of; up to step 32."""
    folder = trained(*golden(place, KEPT, "name=flipped", FLIP), stop_at=32)
    run = dataclasses.replace(open_run(folder), faults=())
    (folder / "run.json").write_text(json.dumps(encode(run)))
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / run.name))


def nothing(folder: Path) -> None:
    pass


def forged_loss(folder: Path) -> None:
    reforged(steps_file(folder), DIGITS, of_step(13, loss=1.0, loss_bits="3f800000"))


def forged_checkpoint(folder: Path) -> None:
    other_array(folder, 16)


def forged_checkpoint_and_journal(folder: Path) -> None:
    journal_digest(folder, 16, other_array(folder, 16))


def forged_journal(folder: Path) -> None:
    journal_digest(folder, 16, "0" * 64)


def flipped_bit(folder: Path) -> None:
    files = (step_folder(folder / "checkpoints", 16) / "params").rglob("d/*")
    data = max((p for p in files if p.is_file()), key=lambda p: p.stat().st_size)
    whole = bytearray(data.read_bytes())
    whole[len(whole) // 2] ^= 1
    data.write_bytes(whole)


def flipped_manifest(folder: Path) -> None:
    path = step_folder(folder / "checkpoints", 16) / "meta" / "metadata"
    path.write_bytes(path.read_bytes().replace(b'"step": 16', b'"step": 17').replace(b'"step":16', b'"step":17'))


@pytest.mark.parametrize(
    ("damage", "kind", "step", "words", "executed"),
    [
        (nothing, "holds", None, "every piece follows from its checkpoint", 24),
        (forged_loss, "record", 13, "the record was changed, not the run", 16),
        (forged_checkpoint, "checkpoint", None, "checkpoint 16 is not what the run went on from", 24),
        (forged_checkpoint_and_journal, "checkpoint", 16, "was changed later, and the journal with it", 24),
        (forged_journal, "journal", 16, "which its steps come to", 24),
        (flipped_bit, "damaged", None, "checkpoint 16 is damaged: params.", 16),
        (flipped_manifest, "damaged", None, "checkpoint 16 is damaged: meta", 16),
    ],
)
def test_what_was_changed_is_named(
    damage: Callable[[Path], None], kind: Kind, step: int | None, words: str, executed: int, copy: Path
) -> None:
    damage(copy)
    found, code = bisect_run(copy, 8, 32, mesh=None, expect=None, lineage=None)
    said = bisected_lines(found)
    assert (found.verdict.kind, found.verdict.step) == (kind, step), said
    assert code == (EXIT_DONE if damage is nothing else EXIT_CHECK_FAILED)
    assert said[-1].startswith(f"{kind}: ") and words in said[-1]
    assert sum(p.steps for p in found.pieces) == executed


def test_what_went_wrong_once_is_told_from_what_was_changed(flipped: Path) -> None:
    """The run went on from a state that no step of its config leads to."""
    done = CliRunner().invoke(commands, ["replay", str(flipped), "--from", "0", "--to", "32", "--bisect", "--json"])
    found = json.loads(done.stdout)
    assert done.exit_code == EXIT_CHECK_FAILED and not found["holds"]
    assert (found["verdict"]["kind"], found["verdict"]["step"]) == ("once", 16)
    assert found["verdict"]["between"] == [8, 16] and "losses" in found["verdict"]["fields"]
    assert found["steps"] == 24, "the piece behind it tells; the last one has nothing to add"


def test_another_program_is_held_to_rounding(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = dataclasses.replace(open_run(run).compute, micro_batch=4)
    found = bisect_interval(dataclasses.replace(open_run(run), compute=compute), run, 8, 24)
    assert found.holds and found.asked == "rounding" and found.changes
    strict = bisect_interval(dataclasses.replace(open_run(run), compute=compute), run, 8, 32, asked="bitwise")
    assert (strict.verdict.kind, strict.verdict.step) == ("persistent", 9)
    tight = {"float32": {"parameters": 1e-9, "moments": 1e-9}}
    monkeypatch.setattr("jaxllm.release.agreement.STATE_TOLERANCE", tight)
    drifted = bisect_interval(dataclasses.replace(open_run(run), compute=compute), run, 8, 24)
    assert not drifted.holds and "drift faster than STATE_TOLERANCE" in bisected_lines(drifted)[-1]
