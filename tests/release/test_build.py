"""A run that went back twice, released: the same bytes however often it was killed, and it continues bitwise."""

import csv
import hashlib
import io
import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zstandard
from safetensors.numpy import load_file
from typer.testing import CliRunner

from jaxllm import app
from jaxllm.asking import roll_back
from jaxllm.checkpoint.layout import DamagedCheckpointError, read_meta, step_folder
from jaxllm.cli import app as commands
from jaxllm.core.errors import EXIT_DONE, CheckpointError, ConfigError, DataError, JaxllmError, RunError
from jaxllm.core.files import sha256_file
from jaxllm.data.batch import host_batch
from jaxllm.data.building import building_folder
from jaxllm.data.stream import stream_of_run
from jaxllm.ledger.fold import present
from jaxllm.ledger.history import lineages_of
from jaxllm.ledger.journal import read_journal
from jaxllm.ledger.records import read_steps
from jaxllm.models.count import parameters
from jaxllm.release.build import build_release, lines
from jaxllm.release.layout import EXTRAS, Release, read_release
from jaxllm.release.licences import licence_of
from jaxllm.release.parts import Part, Workshop
from jaxllm.release.verify import verify_release
from jaxllm.workspace import open_config, open_run, open_store
from tests.trained import KEPT, SPIKE

pytestmark = pytest.mark.slow

LICENCE = licence_of("Apache-2.0", None, None)
PAUSED, BACK, LAST = 24, 32, 40


def train(folder: Path, stop_at: int | None = None) -> None:
    config, place = open_config(str(folder))
    assert app.train(config, place, stop_at=stop_at, profile=None, as_json=False) == EXIT_DONE


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """paused: 24 steps, back from 20 to 16 on the way. finished: it trained on to 40, and once more from 32 on."""
    place = tmp_path_factory.mktemp("release")
    own = ["evaluation.every_steps=8", "logging.tensorboard=true", "guard.keep_abandoned=true"]
    caches = [f"io.data_cache={place / 'data'}", f"io.compilation_cache={place / 'xla'}", f"io.root={place}"]
    common = [s for s in SPIKE if not s.startswith(("evaluation.every", "logging"))]
    config, folder = open_config("tests/golden/config.py:golden", [*common, KEPT, *own, *caches])
    app.train(config, folder, stop_at=PAUSED, profile=None, as_json=False)
    paused = Path(shutil.copytree(folder, place / "paused" / folder.name))
    train(folder)
    roll_back(folder, BACK, kind=None)
    train(folder)
    return {"paused": paused, "finished": folder}


@pytest.fixture(scope="module")
def made(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "release"
    build_release(runs["finished"], out, LICENCE, extras=EXTRAS)
    return out


def tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in folder.rglob("*") if p.is_file()}


def read(path: Path) -> Any:
    return json.loads(path.read_bytes())


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(newline="")))


# ---- what is in it ---------------------------------------------------------------------------------------------------


def test_it_holds_what_was_asked_for_and_verifies(runs: dict[str, Path], made: Path) -> None:
    release = read_release(made)
    branches = [c.branch for c in release.checkpoints]
    assert branches == [
        "step8-tokens8192",
        "step16-tokens16384",
        "step24-tokens24576",
        "step32-tokens40960",
        "lineage1-step40-tokens57344",
        "step40-tokens57344",
    ]
    assert [c.lineage for c in release.checkpoints] == [0, 0, 1, 1, 1, 2]
    assert [c.parent for c in release.checkpoints] == [None, *branches[:3], branches[3], branches[3]]
    assert [(x.lineage, x.parent, x.step) for x in release.lineages] == [(0, None, 0), (1, 0, 16), (2, 1, 32)]
    assert release.run.finished and release.run.steps == LAST and release.run.model == "llama"
    assert release.run.parameters == parameters(open_run(runs["finished"]).model)
    assert {f.path: f.sha256 for f in release.files} == {k: v for k, v in tree(made).items() if k != "release.json"}
    findings = list(verify_release(made, samples=50, seed=0))
    assert all(f.holds for f in findings), findings
    assert [f.name for f in findings][-4:] == ["ends", "complete", "states", "weights"]
    assert not building_folder(made).exists()
    assert "Hugging Face and training state" in lines(made, release)[2]
    assert set(EXTRAS) == set(release.contents)


def test_the_record_is_the_runs_byte_for_byte(runs: dict[str, Path], made: Path) -> None:
    run, record = runs["finished"], tree(made / "record")
    kept = {k: v for k, v in tree(run).items() if not k.startswith(("checkpoints/", "tensorboard/", "lease"))}
    assert record == kept
    assert tree(made / "metrics/tensorboard") == tree(run / "tensorboard")
    for c in read_release(made).checkpoints:
        lies = run / "checkpoints" if c.branch[0] == "s" else run / "checkpoints/lineage-1"
        state = made / c.folder / "state"
        assert tree(step_folder(state, c.step)) == tree(step_folder(lies, c.step))
        assert read_meta(state, c.step)[0].state_digest == c.state_digest


def test_weights_are_those_of_their_checkpoint(runs: dict[str, Path], made: Path) -> None:
    release = read_release(made)
    for c in release.checkpoints:
        tensors = load_file(made / c.folder / "hf/model.safetensors")
        assert "model.layers.1.self_attn.q_proj.weight" in tensors and "lm_head.weight" in tensors
        assert sum(t.size for t in tensors.values()) == release.run.parameters
        assert read(made / c.folder / "hf/jaxllm.json")["parameters_digest"] == c.parameters_digest
    # Going back for no reason took the same data again: the numbers are the same ones.
    assert release.checkpoints[-1].state_digest == release.checkpoints[-2].state_digest
    assert len({c.parameters_digest for c in release.checkpoints}) == len(release.checkpoints) - 1


def test_intervals_tile_the_stream_and_are_what_was_trained_on(runs: dict[str, Path], made: Path) -> None:
    run, store = open_store(open_run(runs["finished"]), runs["finished"])
    lineages = lineages_of(runs["finished"])
    intervals = {i["branch"]: i for i in read(made / "data/intervals.json")["intervals"]}
    live = [intervals[c.branch] for c in read_release(made).checkpoints if c.branch[0] == "s"]
    spans = [(i["first"], i["last"]) for i in live]
    assert spans[0][0] == 0 and spans[-1][1] == 896 and all(a[1] == b[0] for a, b in pairwise(spans))
    assert [(i["first_step"], i["last_step"]) for i in live] == [(1, 8), (9, 16), (17, 24), (25, 32), (33, 40)]
    steps = {r.step: r for r in read_steps(runs["finished"] / "steps", lineage=1)}
    for interval in intervals.values():
        stream, spans_of = stream_of_run(run.data, run.seed, store, lineages.edits(interval["lineage"]))
        rows = stream.rows(np.arange(interval["first"], interval["last"]))
        counted = {(s["source"], s["epoch"]): s["sequences"] for s in interval["sources"]}
        names = [stream.sources[k].name for k in rows.source.tolist()]
        brute: dict[tuple[str, int], int] = {}
        for pair in zip(names, rows.epoch.tolist(), strict=True):
            brute[pair] = brute.get(pair, 0) + 1
        assert counted == brute and sum(brute.values()) == interval["sequences"] == interval["tokens"] // 64
        prefix = "lineage1-" if interval["branch"].startswith("lineage") else ""
        name = f"{prefix}step{interval['first_step']}-{interval['last_step']}"
        chunk = made / "data/chunks" / name / "chunk-00000.jsonl.zst"
        text = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(chunk.open("rb")), encoding="utf-8")
        told = [json.loads(line) for line in text]
        assert [t["position"] for t in told] == list(range(interval["first"], interval["last"]))
        for step in range(interval["first_step"], interval["last_step"] + 1):
            mine = [t for t in told if t["step"] == step]
            batch = host_batch(store, stream, spans_of, run.data, step)
            tokens = np.array([t["token_ids"] for t in mine])
            assert tokens.shape[1] == 65 and (tokens[:, :-1] == batch.arrays["inputs"]).all()
            assert (tokens[:, 1:] == batch.arrays["labels"]).all()
            if step in steps and interval["lineage"] == 1:
                assert f"{batch.lanes[0]:08x}{batch.lanes[1]:08x}" == steps[step].batch
        for t in told[:20]:
            first = t["documents"][0]
            document = store.sources[t["source"]].document(store.sources[t["source"]].find(first["id"]) or 0)
            assert document.start <= t["window"] * 64 < document.stop and t["documents"][-1]["stop"] == 65


def test_metadata_names_what_is_there(made: Path) -> None:
    release, card = read_release(made), read(made / "croissant.json")
    listed = {e["contentUrl"]: e["sha256"] for e in card["distribution"] if e["@type"] == "cr:FileObject"}
    assert listed == {f.path: f.sha256 for f in release.files if f.path.startswith("data/")}
    for record_set in card["recordSet"]:
        for field in record_set["field"]:
            assert field["@id"] == f"{record_set['name']}/{field['name']}"
    columns = set(pq.read_schema(sorted((made / "data/ledgers").iterdir())[0]).names)
    documents, sequences = card["recordSet"]
    assert {f["name"] for f in documents["field"]} <= columns
    chunk = sorted((made / "data/chunks").rglob("*.zst"))[0]
    text = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(chunk.open("rb")), encoding="utf-8")
    assert {f["name"] for f in sequences["field"]} <= set(json.loads(text.readline()))
    components = read(made / "mof.json")["release"]["components"]
    for component in components:
        assert component["present"] == bool(component["paths"]) == (component["license"] is not None)
        assert all((made / path).exists() for path in component["paths"])
    present = {c["name"] for c in components if c["present"]}
    assert {"Datasets", "Model Parameters (Final)", "Training State"} <= present and "Research Paper" not in present


def test_tables_say_the_recorded_bits(runs: dict[str, Path], made: Path) -> None:
    records = list(read_steps(runs["finished"] / "steps"))
    rows, columns = table(made / "metrics/steps.csv"), pq.read_table(made / "metrics/steps.parquet").to_pylist()
    assert len(rows) == len(columns) == len(records) == 40 + 4 + 8
    for row, column, record in zip(rows, columns, records, strict=True):
        assert (int(row["lineage"]), int(row["step"])) == (record.lineage, record.step)
        for name in ("loss", "grad_norm", "lr"):
            assert np.float32(row[name]).view(np.uint32) == int(row[f"{name}_bits"], 16)
            assert np.float32(column[name]).view(np.uint32) == int(getattr(record, f"{name}_bits"), 16)
        assert row["batch"] == column["batch"] == record.batch
    assert [int(r["step"]) for r in rows if r["live"] == "true"] == list(range(1, LAST + 1))
    assert rows[-1]["tokens_so_far"] == "57344"
    scores = table(made / "metrics/heldout.csv")
    assert {(s["lineage"], s["step"]) for s in scores} >= {("0", "8"), ("1", "24"), ("1", "40"), ("2", "40")}
    evaluation = read(made / "checkpoints/step40-tokens57344/evaluation.json")
    told = {(s["source"], repr(s["nats_per_token"])) for s in evaluation["scores"]}
    assert told == {(s["source"], s["nats_per_token"]) for s in scores if (s["lineage"], s["step"]) == ("2", "40")}
    events = table(made / "metrics/events.csv")
    assert [e["event"] for e in events] == [e["event"] for e in read_journal(runs["finished"] / "journal.jsonl")]
    assert len(table(made / "metrics/speeds.csv")) > 5


def test_the_environment_says_what_computed_which_steps(made: Path) -> None:
    (fingerprint,) = read(made / "environment/fingerprints.json")
    assert [(c["lineage"], c["first"], c["last"]) for c in fingerprint["covers"]] == [
        (0, 1, 20),
        (1, 17, 24),
        (1, 25, 40),
        (2, 33, 40),
    ]
    lock = (made / "environment/lock.txt").read_text().splitlines()
    assert any(line.startswith("jax==") for line in lock) and any(line.startswith("zstandard==") for line in lock)
    assert not any(line.startswith("pytest==") for line in lock)


# ---- how it is built -------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What no builder catches."""


def test_a_second_build_has_the_same_bytes(runs: dict[str, Path], made: Path, tmp_path: Path) -> None:
    build_release(runs["finished"], tmp_path / "again", LICENCE, extras=EXTRAS)
    assert tree(tmp_path / "again") == tree(made)


@pytest.mark.parametrize("at", [0, 1, 3, 6, 7, 13, 29, 30])
def test_killed_within_any_part_it_goes_on_to_the_same_bytes(
    runs: dict[str, Path], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    out, began = tmp_path / "release", list[str]()
    make = Workshop.make

    def dies(self: Workshop, part: Part) -> Any:
        began.append(part.name)
        if len(began) == at + 1:
            for path in part.paths:
                for half in (self.release / path / "half", self.release / f"{path}.partial" / "half"):
                    half.parent.mkdir(parents=True, exist_ok=True)
                    half.write_bytes(b"half of it")
            (self.release / ".LICENSE.tmp").write_bytes(b"Apache")
            raise Killed
        return make(self, part)

    monkeypatch.setattr(Workshop, "make", dies)
    with pytest.raises(Killed):
        build_release(runs["finished"], out, LICENCE, extras=EXTRAS)
    assert not out.exists() and (building_folder(out) / "plan.json").is_file()
    finished = began[:-1]
    began.clear()

    def noted(self: Workshop, part: Part) -> Any:
        began.append(part.name)
        return make(self, part)

    monkeypatch.setattr(Workshop, "make", noted)
    build_release(runs["finished"], out, LICENCE, extras=EXTRAS)
    assert not set(finished) & set(began)
    assert tree(out) == tree(made)
    assert len(finished) == at and len(finished) + len(began) == 31


def test_a_finished_part_that_was_damaged_since_is_made_again(
    runs: dict[str, Path], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "release"
    publish = Workshop.publish
    monkeypatch.setattr(Workshop, "publish", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        build_release(runs["finished"], out, LICENCE, extras=EXTRAS)
    place = building_folder(out) / "release"
    weights = place / "checkpoints/step8-tokens8192/hf/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (place / "data/order.json").unlink()
    monkeypatch.setattr(Workshop, "publish", publish)
    with pytest.raises(RunError, match=r"an interrupted release of something else \(dtype: "):
        build_release(runs["finished"], out, LICENCE, extras=EXTRAS, dtype="bfloat16", rounding=True)
    build_release(runs["finished"], out, LICENCE, extras=EXTRAS)
    assert tree(out) == tree(made)


def test_killed_after_the_rename_it_is_there(runs: dict[str, Path], made: Path) -> None:
    building = building_folder(made)
    (building / "done").mkdir(parents=True)
    (building / "plan.json").write_text("{}")
    assert isinstance(build_release(runs["finished"], made, LICENCE, extras=EXTRAS), Release)
    assert not building.exists()
    with pytest.raises(RunError, match="exists; name another --out"):
        build_release(runs["finished"], made, LICENCE, extras=EXTRAS)


def test_a_run_that_goes_on_is_released_as_of_when_the_work_began(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(runs["paused"], tmp_path / "golden"))
    build_release(folder, tmp_path / "quiet", LICENCE, extras=("optimizer",))
    for name in ("journal.jsonl", "steps/000000.jsonl", "metrics.jsonl"):
        with (folder / name).open("a") as file:
            file.write('{"event":"chec')
    make = Workshop.make
    monkeypatch.setattr(Workshop, "make", lambda self, part: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        build_release(folder, tmp_path / "release", LICENCE, extras=("optimizer",))
    monkeypatch.setattr(Workshop, "make", make)
    for name in ("journal.jsonl", "steps/000000.jsonl", "metrics.jsonl", "losses"):  # it trained on meanwhile
        shutil.rmtree(folder / name) if name == "losses" else None
        copy: Any = shutil.copytree if name == "losses" else shutil.copyfile
        copy(runs["finished"] / name, folder / name)
    release = build_release(folder, tmp_path / "release", LICENCE, extras=("optimizer",))
    assert release.run.steps == PAUSED and not release.run.finished and release.run.planned_steps == LAST
    quiet, busy = tree(tmp_path / "quiet"), tree(tmp_path / "release")
    assert {k for k in quiet if quiet[k] != busy.get(k)} <= {k for k in quiet if "losses/" in k or k == "release.json"}
    assert all(f.holds for f in verify_release(tmp_path / "release", samples=0, seed=0))


# ---- what it is good for ---------------------------------------------------------------------------------------------


def fresh_run(release: Path, out: Path, branch: str) -> Path:
    """From the release alone, as the README says."""
    shutil.copytree(release / "record", out)
    shutil.copytree(release / "checkpoints" / branch / "state", out / "checkpoints")
    return out


def test_the_state_continues_the_run_bitwise(runs: dict[str, Path], tmp_path: Path) -> None:
    build_release(runs["paused"], tmp_path / "release", LICENCE, checkpoints=f"steps={PAUSED}", extras=("optimizer",))
    run = fresh_run(tmp_path / "release", tmp_path / "golden", "step24-tokens24576")
    train(run)
    own, whole = (read_journal(f / "journal.jsonl") for f in (run, runs["finished"]))
    end = present(own).finished
    assert end is not None and end.digest == next(e["digest"] for e in whole if e["event"] == "finish")
    exact = {r.step: r for r in read_steps(runs["finished"] / "steps", lineage=1)}
    again = {r.step: r for r in read_steps(run / "steps", lineage=1)}
    assert again == exact and len(exact) == 24
    assert not [e for e in own if e["event"] in ("divergence", "numerics", "fallback")]


def test_a_state_with_a_flipped_bit_does_not_continue(runs: dict[str, Path], tmp_path: Path) -> None:
    build_release(runs["paused"], tmp_path / "release", LICENCE, checkpoints="steps=24", extras=("optimizer",))
    run = fresh_run(tmp_path / "release", tmp_path / "golden", "step24-tokens24576")
    data = max((run / "checkpoints/00000024/opt").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    flipped = bytearray(data.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    data.write_bytes(flipped)
    with pytest.raises((CheckpointError, RunError)):
        train(run)


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", ["params", "opt"])
def test_a_damaged_checkpoint_is_named_and_nothing_published(runs: dict[str, Path], tmp_path: Path, item: str) -> None:
    folder = Path(shutil.copytree(runs["paused"], tmp_path / "golden"))
    for path in step_folder(folder / "checkpoints", 16).joinpath(item).rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(bytes(b ^ 1 for b in path.read_bytes()))
    build_release(folder, tmp_path / "without", LICENCE, checkpoints="steps=8,24", extras=("optimizer",))
    with pytest.raises(DamagedCheckpointError, match="checkpoint 16 is damaged"):
        build_release(folder, tmp_path / "release", LICENCE, extras=("optimizer",))
    assert not (tmp_path / "release").exists()


def test_mistakes_are_one_line_and_leave_nothing(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "release"

    def build(error: type[JaxllmError], said: str, folder: Path = runs["paused"], **how: Any) -> None:
        with pytest.raises(error, match=said):
            build_release(folder, out, LICENCE, **how)
        assert list(tmp_path.iterdir()) in ([], [tmp_path / "golden"])

    build(RunError, "has no checkpoint 7; it has 8, 16, 24", checkpoints="steps=7,8")
    build(ConfigError, "write all, every=1000", checkpoints="evry=3")
    build(ConfigError, "did you mean 'optimizer'", extras=("optimiser",))
    build(ConfigError, "--dtype int8", dtype="int8")
    build(RunError, "no run folder", folder=tmp_path / "none")
    other = Path(shutil.copytree(runs["paused"], tmp_path / "golden"))
    raw = read(other / "run.json")
    raw["data"]["manifest"] = "0" * 64
    (other / "run.json").write_text(json.dumps(raw))
    build(RunError, "no store with manifest 000000000000", folder=other)
    shutil.copy(runs["paused"] / "run.json", other / "run.json")
    shutil.rmtree(other / "checkpoints/00000016/opt")
    store = Path(shutil.copytree(next((runs["finished"].parent / "data").glob("golden-*")), tmp_path / "store"))
    ledger = next(store.glob("prose.train-*.documents.parquet"))
    ledger.write_bytes(bytes(b ^ 1 for b in ledger.read_bytes()))
    raw = read(runs["paused"] / "run.json")
    raw["data"]["store"] = {"kind": "StoreAt", "path": str(store)}
    (other / "run.json").write_text(json.dumps(raw))
    with pytest.raises(DataError, match=r"documents\.parquet is damaged"):
        build_release(other, out, LICENCE, checkpoints="steps=8")


def test_nobody_is_given_a_licence_that_was_not_chosen(runs: dict[str, Path], tmp_path: Path) -> None:
    asked = ["release", str(runs["paused"]), "--out", str(tmp_path / "release")]
    refused = CliRunner().invoke(commands, asked)
    assert isinstance(refused.exception, ConfigError) and "--licence Apache-2.0" in str(refused.exception)
    with pytest.raises(ConfigError, match="give --licence-file"):
        licence_of("MIT", None, None)
    with pytest.raises(ConfigError, match="SPDX expression"):
        licence_of("Apache 2", None, None)
    (tmp_path / "terms.txt").write_text("Do as you like.\n")
    own = ["--licence", "LicenseRef-Own", "--licence-file", str(tmp_path / "terms.txt"), "--data-licence", "CC-BY-4.0"]
    done = CliRunner().invoke(commands, [*asked, *own, "--checkpoints", "every=16", "--json"])
    assert done.exit_code == EXIT_DONE, done.output
    told = json.loads(done.stdout)
    assert [c["step"] for c in told["checkpoints"]] == [16, 24] and told["data_licence"] == "CC-BY-4.0"
    assert (tmp_path / "release/LICENSE").read_text() == "Do as you like.\n"
    assert hashlib.sha256(LICENCE.text.encode()).hexdigest() == sha256_file(Path("LICENSE"))
    assert LICENCE.data == "not stated"
