"""A release, damaged: whatever is changed, verify fails and names it, even where the seal was made again."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from jaxllm.cli import app as commands
from jaxllm.core.errors import EXIT_CHECK_FAILED, EXIT_DONE
from jaxllm.core.files import sha256_file
from jaxllm.ledger.segments import DIGITS
from jaxllm.release.build import build_release
from jaxllm.release.layout import RELEASE
from jaxllm.release.licences import licence_of
from jaxllm.release.sealed import render
from jaxllm.release.verify import Finding, verify_release
from tests.release.forging import reforged
from tests.trained import KEPT, SPIKE, golden, trained

pytestmark = pytest.mark.slow
FLIPS = 300  # seeded positions in the files of a release


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release, with states, of a run that went back once."""
    place = tmp_path_factory.mktemp("damage")
    config, folder = golden(place, *SPIKE, KEPT)
    trained(config, folder)
    build_release(folder, place / "release", licence_of("Apache-2.0", None, None), extras=["optimizer"])
    return place / "release"


@pytest.fixture
def release(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "release"))


def failed(folder: Path) -> list[Finding]:
    return [f for f in verify_release(folder, samples=2, seed=0) if f.holds is False]


def sealed_again(folder: Path, change: Callable[[dict[str, Any]], None] = lambda content: None) -> None:
    """What a forger would do: list the files as they are now."""
    content = json.loads((folder / RELEASE).read_bytes())
    for entry in content["files"]:
        path = folder / entry["path"]
        entry |= {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    change(content)
    (folder / RELEASE).write_bytes(render(content))


def test_it_holds(whole: Path) -> None:
    findings = list(verify_release(whole, samples=5, seed=0))
    assert all(f.holds for f in findings), findings


def test_no_flipped_bit_goes_unseen(release: Path) -> None:
    dice = random.Random(0)
    paths = sorted(p for p in release.rglob("*") if p.is_file() and p.stat().st_size)
    for i in range(FLIPS):
        path = paths[i] if i < len(paths) else dice.choice(paths)
        before = path.read_bytes()
        at, bit = dice.randrange(len(before)), dice.randrange(8)
        path.write_bytes(before[:at] + bytes([before[at] ^ (1 << bit)]) + before[at + 1 :])
        first = next(iter(verify_release(release, samples=0, seed=0)))
        assert first.holds is False, (path, at, bit)
        assert path.relative_to(release).as_posix() in first.said or path.name in first.said
        path.write_bytes(before)
    assert not failed(release)


def test_intervals_of_a_release_are_executed_again(release: Path) -> None:
    """Between the states that it holds; a record that was forged, chain and all, does not come out of it."""
    *_, last = verify_release(release, samples=0, seed=2, replays=2)
    assert last.name == "replay" and last.holds and last.said.count("bitwise") == 2
    steps = release / "record/steps/000000.jsonl"
    reforged(steps, DIGITS, lambda f: {**f, "grad_norm": 1.0, "grad_norm_bits": "3f800000"} if "step" in f else f)
    sealed_again(release)
    found = {f.name: f.said for f in verify_release(release, samples=0, seed=2, replays=1) if f.holds is False}
    assert "grad_norm_bits" in found["replay"]


def cut_journal(folder: Path) -> None:
    journal = folder / "record/journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))
    sealed_again(folder)


def other_weights(folder: Path) -> None:
    path = sorted(folder.glob("checkpoints/step16-*/hf/model.safetensors"))[0]
    tensors = load_file(path)
    tensors["model.norm.weight"] = np.nextafter(tensors["model.norm.weight"], np.float32(9))
    save_file(tensors, path, {"format": "pt"})
    sealed_again(folder)


def weights_of_another(folder: Path) -> None:
    ours, theirs = (sorted(folder.glob(f"checkpoints/step{n}-*/hf/model.safetensors"))[0] for n in (8, 16))
    shutil.copyfile(theirs, ours)
    sealed_again(folder)


def state_of_another(folder: Path) -> None:
    ours, theirs = (sorted(folder.glob(f"checkpoints/step{n}-*/state"))[0] for n in (8, 16))
    inner, other = next(p for p in ours.iterdir() if p.is_dir()), next(p for p in theirs.iterdir() if p.is_dir())
    shutil.rmtree(inner)
    shutil.copytree(other, inner)

    def listed(content: dict[str, Any]) -> None:
        base = ours.relative_to(folder).as_posix() + "/"
        rest = [f for f in content["files"] if not f["path"].startswith(base)]
        new = [
            {
                "path": p.relative_to(folder).as_posix(),
                "sha256": sha256_file(p),
                "bytes": p.stat().st_size,
                "role": "training state",
            }
            for p in ours.rglob("*")
            if p.is_file()
        ]
        content["files"] = sorted(rest + new, key=lambda f: str(f["path"]))

    content = json.loads((folder / RELEASE).read_bytes())
    listed(content)
    (folder / RELEASE).write_bytes(render(content))


def field(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    return lambda folder: sealed_again(folder, change)


def forged_step(folder: Path) -> None:
    path = sorted((folder / "record/steps").glob("*.jsonl"))[0]
    lines = path.read_bytes().splitlines(keepends=True)
    first = json.loads(lines[2])
    lines[2] = lines[2].replace(json.dumps(first["grad_norm"]).encode(), json.dumps(first["grad_norm"] + 1).encode())
    path.write_bytes(b"".join(lines))
    sealed_again(folder)


def one_number(folder: Path) -> None:
    (folder / RELEASE).write_bytes((folder / RELEASE).read_bytes().replace(b'"steps": 40', b'"steps": 41'))


def no_licence(folder: Path) -> None:
    (folder / "LICENSE").write_text("\n")
    sealed_again(folder)


# What was done -> (the first check that fails, a word that it says).
DAMAGE: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "a file is gone": (lambda f: (f / "metrics/steps.csv").unlink(), "files", "metrics/steps.csv"),
    "a file more": (lambda f: (f / "extra.txt").write_text("x") and None, "files", "extra.txt"),
    "another licence": (lambda f: (f / "LICENSE").write_text("mine") and None, "files", "LICENSE"),
    "release.json, one number": (
        lambda f: (
            (f / RELEASE).write_bytes((f / RELEASE).read_bytes().replace(b'"steps": 40', b'"steps": 41')) and None
        ),
        "files",
        "release.json",
    ),
    "the end of the journal, sealed again": (cut_journal, "ends", "chains.journal_events"),
    "a step record, sealed again": (forged_step, "records", "steps"),
    "weights by one ulp, sealed again": (other_weights, "weights", "step16-tokens16384"),
    "weights of another checkpoint": (weights_of_another, "weights", "step8-tokens8192"),
    "state of another checkpoint": (state_of_another, "states", "step8-tokens8192"),
    "an empty licence, sealed again": (no_licence, "complete", "LICENSE"),
    "a span of data, sealed again": (field(lambda c: c["checkpoints"][1].update(first=0)), "complete", "first"),
    "fewer tokens, sealed again": (field(lambda c: c["run"].update(tokens=1)), "complete", "run.tokens"),
    "a digest, sealed again": (
        field(lambda c: c["checkpoints"][0].update(state_digest="0" * 64)),
        "states",
        "state_digest",
    ),
    "no lineage, sealed again": (field(lambda c: c["lineages"].pop()), "complete", "lineages"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_was_done_is_named(release: Path, what: str) -> None:
    damage, check, word = DAMAGE[what]
    damage(release)
    found = failed(release)
    assert found, what
    assert (found[0].name, word in found[0].said) == (check, True), found[0]


def test_exit_codes(release: Path) -> None:
    done = CliRunner().invoke(commands, ["verify", str(release), "--steps", "0", "--replay", "1"])
    assert done.exit_code == EXIT_DONE and "executed again: " in done.stdout
    cut_journal(release)
    assert CliRunner().invoke(commands, ["verify", str(release)]).exit_code == EXIT_CHECK_FAILED
