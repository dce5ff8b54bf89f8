"""The self-check: what flips is found and named, what does not is left alone, and no number of a run changes by it."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxllm import app
from jaxllm.core.errors import EXIT_DONE, EXIT_GUARD_STOPPED, ConfigError
from jaxllm.ledger.fold import present, story
from jaxllm.ledger.journal import read_journal
from jaxllm.ledger.records import read_steps
from jaxllm.models.decoder import describe
from jaxllm.release.replay import replay_interval
from jaxllm.workspace import open_config, open_run
from tests.simulated import run_simulated
from tests.trained import KEPT, golden, trained

pytestmark = pytest.mark.slow
CHECKED = "guard.selfcheck.every_steps=8"
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
