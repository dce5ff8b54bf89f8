"""Intervals of a run that went back once, executed again: bitwise, rounding, different, and why."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxllm.checkpoint.reader import CheckpointReader
from jaxllm.core.config import override
from jaxllm.core.errors import EXIT_CHECK_FAILED, EXIT_DONE, CheckFailed, ConfigError, RunError
from jaxllm.ledger.segments import DIGITS
from jaxllm.release.outcome import as_json, lines, replay_run
from jaxllm.release.replay import Replayed, replay_interval
from jaxllm.workspace import open_run, open_store
from tests.release.forging import of_step, other_array, reforged, steps_file
from tests.trained import KEPT, SPIKE, golden, trained

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints 8, 16, ... 40; back from step 20 to step 16."""
    return trained(*golden(tmp_path_factory.mktemp("replay"), *SPIKE, KEPT))


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / run.name))


def replayed(folder: Path, start: int, stop: int, **how: Any) -> tuple[Replayed, int]:
    return replay_run(folder, start, stop, **{"mesh": None, "expect": None, "lineage": None, **how})


@pytest.mark.parametrize("start, stop, lineage, states", [(8, 32, None, 3), (0, 16, None, 2), (16, 20, 0, 0)])
def test_an_interval_is_bitwise_also_across_a_rollback_and_on_what_was_left(
    run: Path, start: int, stop: int, lineage: int | None, states: int
) -> None:
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    found, code = replayed(run, start, stop, lineage=lineage)
    assert code == EXIT_DONE and found.agreement.found == "bitwise" and found.asked == "bitwise"
    assert (found.agreement.steps, found.states, found.reason) == (stop - start, states, None)
    assert lines(found)[0].startswith(f"steps {start + 1} to {stop}: bitwise")
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before, "the run is only read"


def test_another_program_is_rounding_and_says_what_differs(run: Path) -> None:
    sliced = override(open_run(run), ["compute.micro_batch=4"])
    found = as_json(replay_interval(sliced, run, 16, 24))
    assert (found["class"], found["asked"], found["holds"]) == ("rounding", "rounding", True)
    assert any("compute.micro_batch" in line for line in found["changes"])
    assert 0 < found["largest"]["loss"]["relative"] < 1e-5
    (state,) = found["state_deviations"]
    assert (state["step"], state["after"], state["unread"]) == (24, 8, None)
    by_item = {item["item"]: item for item in state["items"]}
    assert by_item["params"]["furthest"]["name"].startswith("params.") and by_item["opt"]["differing"] > 0
    assert 0 < by_item["params"]["furthest"]["relative"] < 1e-5 and by_item["params"]["furthest"]["ulp"] > 0
    assert not replay_interval(sliced, run, 16, 20, asked="bitwise").holds


def test_a_recorded_state_that_is_gone_is_said_to_be(copy: Path) -> None:
    sliced = override(open_run(copy), ["compute.micro_batch=4"])
    shutil.rmtree(copy / "checkpoints" / "00000024")
    found = replay_interval(sliced, copy, 16, 24)
    assert found.agreement.found == "rounding" and "is not kept any more" in "\n".join(lines(found))


def test_each_lineage_was_recorded_in_an_environment_of_its_own() -> None:
    from jaxllm.release.replay import _sessions

    def event(name: str, seq: int, **fields: Any) -> dict[str, Any]:
        return {"event": name, "seq": seq, **fields}

    back = {"lineage": 1, "parent": 0, "step": 10, "edits": [], "by": "person"}
    events = [
        event("start", 0, environment="X"),
        event("rollback", 1, **back),
        event("resume", 2, step=10, environment="Y"),
    ]
    assert _sessions(events) == [(0, 1, "X"), (1, 11, "X"), (1, 11, "Y")]


def rewrite_record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another loss of step 13, in a chain that holds."""
    reforged(steps_file(folder), DIGITS, of_step(13, losses="0" * 16))


def lose_moments(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = CheckpointReader.restore

    def restore(self: CheckpointReader, *args: Any) -> Any:
        restored = real(self, *args)
        restored.items["opt"]["mu"] = jax.tree.map(lambda x: x * 0, restored.items["opt"]["mu"])
        return restored

    monkeypatch.setattr(CheckpointReader, "restore", restore)


@pytest.mark.parametrize("damage, step, field", [(rewrite_record, 13, "losses"), (lose_moments, 10, "loss_bits")])
def test_what_does_not_agree_is_named_with_its_step(
    damage: Callable[[Path, pytest.MonkeyPatch], None],
    step: int,
    field: str,
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    damage(copy, monkeypatch)
    found, code = replayed(copy, 8, 16)
    assert code == EXIT_CHECK_FAILED
    assert found.agreement.first is not None
    assert found.agreement.first[0] == step and field in found.agreement.first[1]
    assert found.reason is not None and found.reason.startswith("nothing that was recorded explains it")
    assert as_json(found)["holds"] is False
    if damage is lose_moments:
        assert any("arrays of the optimizer state differ, the furthest off is opt." in line for line in lines(found))


def test_other_tokens_are_said_to_be_data(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, store = open_store(open_run(run), run)
    reader = type(next(iter(store.sources.values())))
    real = reader.gather
    monkeypatch.setattr(reader, "gather", lambda self, start, width: real(self, start, width) ^ 1)
    found, code = replayed(run, 8, 10)
    assert code == EXIT_CHECK_FAILED and found.agreement.found == "different"
    assert (
        found.agreement.broken is not None
        and found.agreement.broken[0] == 9
        and "batch is" in found.agreement.broken[1]
    )
    assert found.reason is not None and found.reason.startswith("data: ")


def test_a_checkpoint_that_the_run_did_not_go_on_from_is_not_begun_with(copy: Path) -> None:
    other_array(copy, 24)
    with pytest.raises(CheckFailed, match="checkpoint 24 is not what the run went on from: its state is"):
        replayed(copy, 24, 32)


@pytest.mark.parametrize(
    "start, stop, how, words",
    [
        (9, 16, {}, "no checkpoint 9 of that lineage; it has 0, 8, 16"),
        (32, 41, {}, "not all recorded: up to step 40"),
        (16, 16, {}, "the second later"),
        (8, 16, {"expect": "same"}, "bitwise or rounding"),
        (16, 24, {"lineage": 0}, "not all recorded: up to step 20"),
    ],
)
def test_mistakes_are_named(run: Path, start: int, stop: int, how: dict[str, Any], words: str) -> None:
    with pytest.raises((RunError, ConfigError), match=words):
        replayed(run, start, stop, **how)
