"""The self-check: what flips is found and named, what does not is left alone, and no number of a run changes by it."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxllm import app
from jaxllm.core.errors import EXIT_DONE, EXIT_GUARD_STOPPED, ConfigError
from jaxllm.ledger.fold import present, story
from jaxllm.ledger.journal import Journal, read_journal
from jaxllm.ledger.records import compare, read_steps
from jaxllm.models.decoder import describe
from jaxllm.release.replay import replay_interval
from jaxllm.release.verify import verify_run
from jaxllm.train.config import Guard
from jaxllm.train.guard import Back, Judge, Stop
from jaxllm.workspace import open_config, open_run
from tests.simulated import run_simulated
from tests.test_several_processes import Supervised
from tests.trained import KEPT, QUIET, golden, trained

pytestmark = pytest.mark.slow
CHECKED = "guard.selfcheck.every_steps=8"
REPLAY = 'guard.selfcheck.action={"kind":"Replay"}'
WARN = 'guard.selfcheck.action={"kind":"Warn"}'
STEP = 16  # a self-check is due before its update
PARAMETER, INDEX, BIT = "blocks.attention.q", 3, 20


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(scope="module")
def plain(caches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(*golden(caches, root=tmp_path_factory.mktemp("plain")))


def flip(step: int = STEP, **more: Any) -> str:
    fault = {"kind": "BitFlip", "step": step, "parameter": PARAMETER, "bit": BIT, "index": _index()} | more
    return "faults=" + json.dumps([fault])


def _index() -> list[int]:
    run, _ = open_config("tests/golden/config.py:golden", [])
    (shape,) = (leaf.shape for leaf in describe(run.model).leaves if leaf.path == PARAMETER)
    return [min(INDEX, size - 1) for size in shape]


def train(caches: Path, root: Path, *more: str) -> tuple[Path, int]:
    run, folder = golden(caches, *more, root=root)
    return folder, app.train(run, folder, stop_at=None, profile=None, as_json=False)


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [e for e in read_journal(folder / "journal.jsonl") if e["event"] == kind]


def records(folder: Path) -> list[Any]:
    return list(read_steps(folder / "steps"))


def test_a_run_that_is_checked_has_the_same_numbers_and_finds_nothing(
    caches: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, code = train(caches, tmp_path, CHECKED)
    assert code == EXIT_DONE
    assert records(folder) == records(plain)
    assert (
        present(read_journal(folder / "journal.jsonl")).finished
        == present(read_journal(plain / "journal.jsonl")).finished
    )
    assert not events(folder, "selfcheck")
    assert "self-check: 5 gradients computed twice, 0 comparisons of replicas: no difference" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_bit_that_flips_between_the_two_computations_is_found_and_stops_the_run(caches: Path, tmp_path: Path) -> None:
    folder, code = train(caches, tmp_path, CHECKED, flip(transient=True))
    assert code == EXIT_GUARD_STOPPED
    (found,) = events(folder, "selfcheck")
    assert (found["step"], found["lineage"]) == (STEP, 0)
    assert f"gradient.{PARAMETER}" in found["fields"] and "losses" in found["fields"]
    assert records(folder)[-1].step == STEP - 1  # the update was not made
    assert [e["what"] for e in events(folder, "fault")] == [f"bit {BIT} of {PARAMETER}{_index()} is flipped"]
    assert any("selfcheck" in line and "gradient" in line for line in story(read_journal(folder / "journal.jsonl")))


def test_without_a_check_the_flip_goes_unseen_and_with_a_warning_it_goes_on(
    caches: Path, plain: Path, tmp_path: Path
) -> None:
    unseen, code = train(caches, tmp_path / "unseen", flip())
    assert code == EXIT_DONE and not events(unseen, "selfcheck")
    before, after = records(unseen)[: STEP - 1], records(unseen)[STEP - 1 :]
    assert before == records(plain)[: STEP - 1]
    assert all(a != b for a, b in zip(after, records(plain)[STEP - 1 :], strict=True))
    warned, code = train(caches, tmp_path / "warned", CHECKED, WARN, flip())
    assert code == EXIT_DONE and [e["step"] for e in events(warned, "selfcheck")] == [STEP]
    assert records(warned) == records(unseen)


# ---- going back ------------------------------------------------------------------------------------------------------


def finish(folder: Path) -> str:
    (event,) = events(folder, "finish")
    return str(event["digest"])


def rollbacks(folder: Path) -> list[tuple[int, int, str]]:
    return [(e["step"], e["last"], e["by"]) for e in events(folder, "rollback")]


def test_replayed_a_glitch_is_gone_and_the_run_is_the_one_that_had_none(
    caches: Path, plain: Path, tmp_path: Path
) -> None:
    folder, code = train(caches, tmp_path, CHECKED, REPLAY, flip(transient=True))
    assert code == EXIT_DONE and finish(folder) == finish(plain)
    assert [(e["step"], e["lineage"]) for e in events(folder, "selfcheck")] == [(STEP, 0)]
    assert rollbacks(folder) == [(8, STEP - 1, "guard")]
    (back,) = events(folder, "rollback")
    assert back["why"].startswith(f"self-check at step {STEP}: the gradient came out otherwise the second time: grad")
    once = {r.step: r for r in records(plain)}
    assert [r.step for r in records(folder)] == [*range(1, STEP), *range(9, 41)]
    assert all(not compare(once[r.step], r) for r in records(folder))
    assert [f.said for f in verify_run(folder, samples=5, seed=0) if f.holds is False] == []


def test_what_comes_again_is_replayed_as_often_as_the_guard_may_and_then_stops_the_run(
    caches: Path, tmp_path: Path
) -> None:
    folder, code = train(caches, tmp_path, CHECKED, REPLAY, flip(), "guard.max_rollbacks=2")
    assert code == EXIT_GUARD_STOPPED
    assert [e["lineage"] for e in events(folder, "selfcheck")] == [0, 1, 2]
    assert rollbacks(folder) == [(8, STEP - 1, "guard")] * 2
    (stop,) = events(folder, "guard_stop")
    assert stop["step"] == STEP - 1 and "went back 2 times" in stop["why"] and "exchange the device" in stop["why"]


def test_killed_while_it_goes_back_from_a_glitch_right_behind_a_checkpoint_it_is_never_killed(
    caches: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the checkpoint of the last step that was executed: no step is executed twice."""
    append = Journal.append

    def dying(self: Journal, event: str, **fields: Any) -> Any:
        written = append(self, event, **fields)
        if event == "rollback":
            raise InterruptedError
        return written

    arguments = ("guard.selfcheck.every_steps=17", REPLAY, flip(step=17, transient=True))
    with monkeypatch.context() as m, pytest.raises(InterruptedError):
        m.setattr(Journal, "append", dying)
        train(caches, tmp_path, *arguments)
    folder, code = train(caches, tmp_path, *arguments)
    assert code == EXIT_DONE and finish(folder) == finish(plain) and rollbacks(folder) == [(16, 16, "guard")]
    assert [r.step for r in records(folder)] == list(range(1, 41))
    assert [f.said for f in verify_run(folder, samples=5, seed=0) if f.holds is False] == []


def test_spikes_and_glitches_are_counted_together() -> None:
    judge = Judge(Guard(max_rollbacks=2, rollbacks_within=100), went_back=[5, 90])
    assert isinstance(judge.back(121, 120, "replay", "a glitch", "mend it"), Back)  # 5 was long ago
    assert isinstance(judge.back(91, 90, "replay", "a glitch", "mend it"), Stop)


def test_a_flip_that_is_no_glitch_is_made_again_by_a_replay_and_one_that_is_shows(caches: Path, tmp_path: Path) -> None:
    folder, _ = train(caches, tmp_path / "lasting", flip(step=20), KEPT)
    assert replay_interval(open_run(folder), folder, 16, 24).agreement.found == "bitwise"
    folder, _ = train(caches, tmp_path / "passing", flip(step=20, transient=True), KEPT)
    replayed = replay_interval(open_run(folder), folder, 16, 24)
    assert replayed.agreement.found != "bitwise"
    assert replayed.agreement.first is not None and replayed.agreement.first[0] == 20


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"parameter": "blocks.attention.w", "index": [0]}, "faults.0.parameter"),
        ({"index": [0, 99999, 0, 0]}, "faults.0.index"),
        ({"bit": 32}, "bit=32"),
        ({"device": 1}, "faults.0.device"),
    ],
)
def test_a_flip_of_nothing_is_refused(caches: Path, tmp_path: Path, fault: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace(".", r"\.")):
        train(caches, tmp_path, flip(**fault))


# ---- replicas --------------------------------------------------------------------------------------------------------


def found_apart(device: int | None) -> list[str]:
    """What is found of two arrays on two devices, a bit of one flipped."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from jaxllm.train.config import BitFlip
    from jaxllm.train.flip import flipped
    from jaxllm.train.selfcheck import apart, copies

    mesh = Mesh(np.array(jax.devices()), ("dp",))
    whole = NamedSharding(mesh, PartitionSpec())
    tree = {"a": jax.device_put(jnp.arange(12.0).reshape(3, 4), whole), "b": jax.device_put(jnp.ones(5), whole)}
    tree |= {"cut": jax.device_put(jnp.ones(4), NamedSharding(mesh, PartitionSpec("dp")))}
    flips = [BitFlip(step=1, parameter="a", index=(1, 2), bit=0, device=device)]
    return apart(copies(flipped(tree, flips, mesh), mesh))


@pytest.mark.parametrize(
    ("device", "found"),
    [(1, ["a[0:3,0:4]: device 1 differs from 0"]), (0, ["a[0:3,0:4]: device 1 differs from 0"]), (None, [])],
)
def test_a_replica_that_went_apart_is_named(device: int | None, found: list[str]) -> None:
    assert run_simulated(found_apart, devices=2, device=device) == found


def test_the_fewer_are_the_ones_that_differ() -> None:
    from jaxllm.train.selfcheck import apart

    rows = [["w", "[0:2]", n, "f" if n == 2 else "0"] for n in range(4)] + [["v", "[0:2]", n, "0"] for n in range(4)]
    assert apart(rows) == ["w[0:2]: device 2 differs from 0, 1, 3"]


def test_two_processes_find_whose_replica_went_apart_and_go_back(caches: Path, tmp_path: Path) -> None:
    """A bit flips in the copy of process 1 before update 12; the replicas are compared before update 16."""
    places = [*QUIET, f"io.data_cache={caches / 'data'}", f"io.compilation_cache={caches / 'xla'}", "mesh.dp=2"]
    with Supervised(
        tmp_path, 2, *places, "--stop-at", "18", CHECKED, REPLAY, flip(12, device=1, transient=True)
    ) as run:
        code, said = run.end()
    assert code == EXIT_DONE, said
    (found,) = events(run.folder, "selfcheck")
    assert (found["step"], found["lineage"], found["what"]) == (STEP - 1, 0, "replicas differ")
    assert any(field.startswith(f"params.{PARAMETER}[0:2,") for field in found["fields"])
    assert all(field.endswith(": device 1 differs from 0") for field in found["fields"])
    assert rollbacks(run.folder) == [(8, STEP - 1, "guard")]
    left, live = ({r.step: r for r in records(run.folder) if r.lineage == n} for n in (0, 1))
    same = {step for step in range(9, STEP) if not compare(left[step], live[step])}
    assert same == {9, 10, 11} and sorted(live) == list(range(9, 19))
