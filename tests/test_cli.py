"""The commands as a person meets them: one line for a mistake, exit codes, JSON for programs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxllm.cli import main
from jaxllm.workspace import open_config, open_store, save_config

GOLDEN = "tests/golden/config.py"
STORED_RUN = Path("tests/golden/run_schema1")


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    code = left.value.code
    return code if isinstance(code, int) else 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("train", "configs/nothing.py"), "no such file"),
        (("train", "configs/quickstart.py:quikstart"), "did you mean 'quickstart'"),
        (("train", GOLDEN, "optimzer.beta1=1"), "did you mean 'optimizer'"),
        (("train", GOLDEN, "model.width=wide"), 'run.model.width="wide": input should be a valid integer'),
        (("train", GOLDEN, "model.attention.heads=3"), "heads=3 is not a multiple of kv_heads=2"),
        (("train", GOLDEN, "compute.micro_batch=3"), "is not a multiple of compute.micro_batch=3"),
        (("train", GOLDEN, "--profile", "5"), "write A:B"),
        (("train", GOLDEN, "io.root=gs://bucket/runs"), "mount the bucket"),
        (("train", "README.md"), "neither a config"),
        (("show", "tests"), "folder without run.json"),
        (("journal", "tests"), "there is no journal"),
        (("data", "step", "tests", "1"), "no run folder"),
        (("data", "find", "tests", "--doc", "x"), "no run folder"),
        (("data", "info", "tests"), "manifest.json"),
        (("data", "prepare", "configs/quickstart.py", "--out", "x"), "not a DataRecipe"),
        (("data", "prepare", "--source", "a=b"), "--out"),
        (("sample", "tests", "--prompt", "x"), "no run folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("jaxllm: ") and said.err.count("\n") == 1
    assert says in said.err


@pytest.mark.parametrize("arguments", [(), ("trian",), ("train",), ("train", "--no-such-option"), ("data",)])
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert call(*arguments) == 2


def test_looking_at_configs_and_stores_never_starts_jax(tmp_path: Path) -> None:
    program = """
import sys
from jaxllm.cli import main
from jaxllm.workspace import open_config, open_store, save_config
try:
    main(sys.argv[1:])
except SystemExit as left:
    code = left.code
heavy = [m for m in ("jax", "flax", "optax", "orbax", "grain", "tensorstore") if m in sys.modules]
print(code, heavy)
"""

    def light(*arguments: str) -> None:
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120)
        assert done.stdout.splitlines()[-1] == "0 []", (arguments, done.stdout[-500:], done.stderr[-500:])

    out = tmp_path / "store"
    sources = [x for name in ("prose", "code") for x in ("--source", f"{name}=tests/golden/{name}.jsonl")]
    light("data", "prepare", *sources, "--id-field", "id", "--tokenizer", "bpe:300", "--out", str(out))
    light("data", "info", str(out), "--verify", "--json")
    # A run that has only begun: what it will see can be asked for.
    run, folder = open_config(GOLDEN, [f'data.store={{"kind":"StoreAt","path":"{out}"}}', f"io.root={tmp_path}"])
    pinned, store = open_store(run, folder)
    folder.mkdir()
    save_config(pinned, folder)
    light("data", "step", str(folder), "3", "--decode")
    light("data", "find", str(folder), "--doc", store.sources["prose"].document(0).id)
    shutil.copy(STORED_RUN / "journal.jsonl", folder)
    light("journal", str(folder))


def test_prepare_and_info_speak_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--source", "prose=tests/golden/prose.jsonl", "--id-field", "id", "--tokenizer", "bpe:300"]
    assert call("data", "prepare", *arguments, "--heldout", "100", "--out", str(tmp_path / "s"), "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert call("data", "info", str(tmp_path / "s"), "--json") == 0
    info = json.loads(capsys.readouterr().out)
    assert made["manifest"] == info["manifest"]
    assert {(r["name"], r["split"]) for r in info["sources"]} == {("prose", "train"), ("prose", "heldout")}
    assert sum(r["documents"] for r in info["sources"]) == info["documents"] > 200


def test_show_speaks_json_and_its_table_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", GOLDEN, "model.layers=3", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["config"]["model"]["layers"] == 3
    assert sum(r["parameters"] for r in report["parameter_table"]) == report["parameters"]
    assert report["tokens"] == 64 * (24 * 16 + 16 * 32)
    assert call("show", GOLDEN) == 0
    assert "blocks.attention.q" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = [f"io.root={tmp_path}", f"io.data_cache={tmp_path / 'data'}", "logging.tensorboard=false"]
    assert call("train", GOLDEN, *place, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["checkpoint_bytes"] > 0
    assert list(tmp_path.iterdir()) == []  # a dry run leaves nothing
    assert call("train", GOLDEN, *place, "evaluation.every_steps=null", "--stop-at", "3", "--json") == 0
    paused = json.loads(capsys.readouterr().out)
    assert (paused["outcome"], paused["step"]) == ("paused", 3)
    run = str(tmp_path / "golden")
    assert call("train", run, 'evaluation.prompts=["Return the"]', "evaluation.sample_tokens=5", "--json") == 0
    finished = json.loads(capsys.readouterr().out)
    assert finished["outcome"] == "finished" and finished["samples"][0]["text"]
    assert {s["source"] for s in finished["scores"]} == {"prose", "code"}
    assert call("train", GOLDEN, *place) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert call("train", GOLDEN, *place, "seed=5") == 2
    assert "seed: 11 -> 5" in capsys.readouterr().err

    assert call("journal", run) == 0
    story = capsys.readouterr().out
    assert [line.split()[2] for line in story.splitlines()][:3] == ["start", "stage", "checkpoint"]
    assert call("journal", run, "--json") == 0
    assert json.loads(capsys.readouterr().out)[-1]["event"] == "finish"

    assert call("data", "step", run, "30", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 32
    document = rows[5]["spans"][0]["id"]
    assert call("data", "find", run, "--doc", document, "--source", rows[5]["source"], "--json") == 0
    sightings = json.loads(capsys.readouterr().out)["sightings"]
    assert (30, 5) in {(s["step"], s["row"]) for s in sightings}
    assert call("data", "step", run, "30", "--decode") == 0
    assert document in capsys.readouterr().out
    assert call("data", "step", run, "41") == 2
    assert "1 to 40" in capsys.readouterr().err

    texts = []
    for seed in ("1", "1", "2"):
        assert call("sample", run, "--prompt", "The name", "--tokens", "12", "--seed", seed) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2] and texts[0].startswith("The name")
    assert call("sample", run, "--prompt", "The name", "--step", "7") == 2
    assert "7" in capsys.readouterr().err
