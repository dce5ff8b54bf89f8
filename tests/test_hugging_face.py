"""Export and import as commands: the same bits there and back, and one line for everything that cannot be."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxllm.checkpoint.layout import read_meta
from jaxllm.checkpoint.manifest import state_digest
from jaxllm.cli import main
from jaxllm.convert.published import open_published
from jaxllm.convert.saved import SavedArrays
from jaxllm.core.config import override
from jaxllm.core.errors import ConfigError
from jaxllm.core.mixing import array_digest, array_lanes
from jaxllm.ledger.fold import present, story
from jaxllm.ledger.journal import read_journal
from jaxllm.models.config import Alibi, PostNorm
from jaxllm.models.families.registry import family_of_model
from jaxllm.models.families.table import Surroundings
from jaxllm.run import RunConfig, decode_run
from jaxllm.workspace import open_run, save_config

STORED = Path("tests/golden/run_schema1")
TEMPLATE = "{% for m in messages %}\r\n<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}\n"


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    code = left.value.code
    return code if isinstance(code, int) else 0


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored run, exported."""
    out = tmp_path_factory.mktemp("hf") / "golden"
    assert call("export-hf", STORED, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def imported(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export, as people publish: with a chat template and settings of its own, imported."""
    source, out = tmp_path_factory.mktemp("published"), tmp_path_factory.mktemp("runs") / "golden"
    shutil.copytree(exported, source, dirs_exist_ok=True)
    (source / "chat_template.jinja").write_text(TEMPLATE, newline="")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    (source / "generation_config.json").write_text('{"eos_token_id": [0, 7],   "temperature": 0.6}')
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": "left"}))
    assert call("import-hf", source, "--out", out) == 0
    return out


def params_digest(run: Path, step: int) -> str:
    return state_digest(read_meta(run / "checkpoints", step)[0].of_items(["params"]).values())


def test_import_of_export_is_the_run_to_the_bit(imported: Path) -> None:
    before, after = open_run(STORED), open_run(imported)
    assert params_digest(STORED, 20) == params_digest(imported, 0)
    assert dataclasses.replace(before.model, init=after.model.init) == after.model
    assert after.data.seq_len == before.data.seq_len and after.steps == 0
    assert (imported / "tokenizer.json").read_bytes() == (STORED / "tokenizer.json").read_bytes()
    special = json.loads((imported / "special_tokens.json").read_text())
    assert special["tokenizer"] == json.loads((STORED / "special_tokens.json").read_text())["tokenizer"]
    assert special["end_of_text_id"] == 0 and special["eos_token_id"] == [0, 7]


def test_another_tokenizer_is_refused_unless_it_is_named(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(exported, tmp_path / "m"))
    raw = json.loads((source / "tokenizer.json").read_text())
    vocab = raw["model"]["vocab"]
    first, second = sorted(vocab)[40:42]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (source / "tokenizer.json").write_text(json.dumps(raw))
    assert call("import-hf", source, "--out", tmp_path / "run") == 2
    assert "goes with" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert call("import-hf", source, "--out", tmp_path / "run", "--tokenizer", source / "tokenizer.json") == 0


@pytest.mark.torch
def test_transformers_says_the_same_text(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(exported), AutoModelForCausalLM.from_pretrained(exported)
    for prompt in ("The name of", "def first(x):\n"):
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        text = tokenizer.decode(model.generate(**inputs, max_new_tokens=16, do_sample=False)[0])
        capsys.readouterr()
        assert call("sample", STORED, "-p", prompt, "--tokens", "16", "--temperature", "0", "--json") == 0
        said = json.loads(capsys.readouterr().out)["text"]
        assert text == prompt + said and len(said) > 10


@pytest.mark.torch
def test_transformers_has_the_chat_template_and_special_tokens(imported: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    assert call("export-hf", imported, "--out", tmp_path / "again") == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<|user|>hi"
    assert tokenizer.get_chat_template("tool_use") == "{{ tools }}"
    assert tokenizer.eos_token_id == 0 and tokenizer.padding_side == "left"
    assert GenerationConfig.from_pretrained(tmp_path / "again").eos_token_id == [0, 7]


def test_a_changed_bit_is_seen(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the hash that an export carries; without it, by the digest of what was imported."""
    shutil.copytree(exported, tmp_path / "m")
    data = bytearray((tmp_path / "m" / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (tmp_path / "m" / "model.safetensors").write_bytes(data)
    assert call("import-hf", tmp_path / "m", "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("jaxllm: ") and "the file was damaged" in said[-1]
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    (tmp_path / "m" / "jaxllm.json").unlink()
    assert call("import-hf", tmp_path / "m", "--out", tmp_path / "run") == 0
    assert params_digest(tmp_path / "run", 0) != params_digest(STORED, 20)


def test_an_export_with_the_files_of_another_is_refused(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(exported, tmp_path / "m")
    said = json.loads((exported / "jaxllm.json").read_text())
    (tmp_path / "m" / "jaxllm.json").write_text(
        json.dumps(said | {"sha256": {"model-00001-of-00002.safetensors": "a"}})
    )
    assert call("import-hf", tmp_path / "m", "--out", tmp_path / "run") == 2
    assert "jaxllm.json is not about model.safetensors" in capsys.readouterr().err


def test_export_of_import_is_the_publication(exported: Path, imported: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    assert call("export-hf", imported, "--out", out, "--shard-size", "20kB") == 0
    assert len(list(out.glob("model-*.safetensors"))) > 1
    first, second = open_published(exported), open_published(out)
    assert first.entries.keys() == second.entries.keys() and first.model == second.model
    for name, entry in first.entries.items():
        assert entry.read().tobytes() == second.entries[name].read().tobytes(), name
    assert json.loads((out / "config.json").read_text()) == json.loads((exported / "config.json").read_text())
    assert (out / "chat_template.jinja").read_bytes() == TEMPLATE.encode()
    assert (out / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ tools }}"
    assert (out / "generation_config.json").read_text() == '{"eos_token_id": [0, 7],   "temperature": 0.6}'
    assert json.loads((out / "tokenizer_config.json").read_text())["padding_side"] == "left"
    origin = json.loads((out / "jaxllm.json").read_text())
    assert origin["parameters_digest"] == params_digest(STORED, 20)


def test_what_an_export_says(exported: Path) -> None:
    assert {p.name for p in exported.iterdir()} == {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "jaxllm.json",
    }
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["dtype"] == "float32"
    assert config["max_position_embeddings"] == 64 and "transformers_version" not in config
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (0, 0, None)
    settings = json.loads((exported / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast" and settings["eos_token"] == "<|endoftext|>"
    assert settings["model_max_length"] == 64
    manifest, _ = read_meta(STORED / "checkpoints", 20)
    origin = json.loads((exported / "jaxllm.json").read_text())
    assert origin["state_digest"] == manifest.state_digest and origin["step"] == 20 and origin["run"] == "golden"


def test_both_say_the_same_text(imported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for run in (STORED, imported):
        assert call("sample", run, "-p", "The", "--tokens", "8", "--temperature", "0") == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_the_averaged_parameters_are_exported(exported: Path, tmp_path: Path) -> None:
    assert call("export-hf", STORED, "--ema", "--out", tmp_path / "ema") == 0
    one, other = (load_file(p / "model.safetensors") for p in (exported, tmp_path / "ema"))
    assert any((one[n] != other[n]).any() for n in one)
    saved = SavedArrays(STORED / "checkpoints", 20, "ema")
    found = array_digest(other["model.embed_tokens.weight"])
    assert found == saved.records["embed.table"].digest


def test_a_type_that_rounds_is_refused_until_it_loses_nothing(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("export-hf", STORED, "--out", tmp_path / "half", "--dtype", "bf16") == 2
    assert "would be rounded by bfloat16" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert call("export-hf", STORED, "--out", tmp_path / "half", "--dtype", "bf16", "--round") == 0
    assert call("import-hf", tmp_path / "half", "--out", tmp_path / "run") == 0
    assert call("export-hf", tmp_path / "run", "--out", tmp_path / "again", "--dtype", "bfloat16") == 0
    one, other = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("half", "again"))
    assert one == other


def test_an_imported_run_is_told_and_not_trained(imported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = read_journal(imported / "journal.jsonl")
    assert [e["event"] for e in events] == ["import", "checkpoint"]
    assert events[0]["architecture"] == "LlamaForCausalLM"
    assert {f["name"] for f in events[0]["files"]} >= {"model.safetensors", "config.json", "tokenizer.json"}
    now = present(events)
    assert now.last_checkpoint is not None and now.last_checkpoint.digest == params_digest(imported, 0)
    assert "LlamaForCausalLM from" in story(events)[0]
    for command in (("train", imported), ("train", imported, "--dry-run"), ("data", "step", imported, "1")):
        assert call(*command) == 2
        said = capsys.readouterr().err
        assert "is an imported model (LlamaForCausalLM)" in said and "start=FromRun(folder=" in said
    assert call("show", imported, "--json") == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 0


def test_an_imported_run_has_no_data_and_others_do(imported: Path) -> None:
    run = open_run(imported)
    assert decode_run(json.loads((imported / "run.json").read_text())) == run
    with pytest.raises(ConfigError, match="go together"):
        override(run, ['start={"kind":"Scratch"}'])
    with pytest.raises(ConfigError, match="none without a store"):
        override(run, ['data.stages=[{"name":"a","steps":1,"batch_size":1,"mixture":[{"source":"x","weight":1}]}]'])


# ---- what cannot be imported -----------------------------------------------------------------------------------------


def config(**fields: Any) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        raw = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps({k: v for k, v in (raw | fields).items() if v != "gone"}))

    return change


def tensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(place: Path) -> None:
        found = load_file(place / "model.safetensors")
        change(found)
        save_file(found, place / "model.safetensors", metadata={"format": "pt"})
        (place / "jaxllm.json").unlink()  # it knows the file as it was

    return apply


def remove(name: str) -> Callable[[Path], None]:
    return lambda place: (place / name).unlink()


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def apply(place: Path) -> None:
        for change in changes:
            change(place)

    return apply


def fewer_tokens(found: dict[str, Any]) -> None:
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        found[name] = found[name][:300].copy()


Q = "model.layers.0.self_attn.q_proj.weight"
BAD = {
    "architecture": (config(model_type="lama"), "model_type='lama' is not one of"),
    "field": (config(hidden_act="relu"), "hidden_act='relu' is not supported"),
    "unknown": (config(sparsity=0.5), "sparsity=0.5 is a field that is not known here"),
    "no length": (config(max_position_embeddings="gone"), "max_position_embeddings is missing"),
    "no end": (both(config(eos_token_id=None), remove("generation_config.json")), "eos_token_id is missing"),
    "wrong end": (both(config(eos_token_id=400), remove("generation_config.json")), "has no token 400"),
    "end of no token": (both(config(eos_token_id=1 << 40), remove("generation_config.json")), "is no token id"),
    "named by no name": (config(architectures={"a": 1}), "architectures={'a': 1} is no list of names"),
    "experts": (
        config(model_type="mixtral", num_local_experts=10**9, attention_bias="gone", mlp_bias="gone"),
        "by config.json there are 3,000,000,010 tensors, and the files hold 12",
    ),
    "settings": (lambda p: (p / "tokenizer_config.json").write_text("{"), "tokenizer_config.json is not JSON"),
    "index": (lambda p: (p / "model.safetensors.index.json").write_text("[" * 100_000), "index.json is not JSON"),
    "config": (lambda p: (p / "config.json").write_text("{"), "config.json is not JSON"),
    "no config": (remove("config.json"), "config.json is missing"),
    "missing": (tensors(lambda t: t.pop(Q)), f"{Q} is missing (1 of 12 tensors are)"),
    "unused": (tensors(lambda t: t.update(extra=t[Q])), "extra [16, 16] has no place in this model"),
    "shape": (
        tensors(lambda t: t.update({Q: t[Q][:8].copy()})),
        f"{Q} has shape [8, 16], by config.json it has [16, 16]",
    ),
    "type": (tensors(lambda t: t.update({Q: t[Q].astype(np.float64)})), f"{Q} is of type F64"),
    "cut": (lambda p: (p / "model.safetensors").write_bytes((p / "model.safetensors").read_bytes()[:-4]), "bytes and"),
    "no parameters": (remove("model.safetensors"), "has neither model.safetensors nor"),
    "no tokenizer": (remove("tokenizer.json"), "tokenizer.json is missing"),
    "no json": (lambda p: (p / "tokenizer.json").write_text("{}"), "is not a tokenizer.json"),
    "vocabulary": (
        both(config(vocab_size=300), tensors(fewer_tokens)),
        "has ids up to 319, and the model has vocab_size=300",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_folder_that_is_no_model_is_one_line_and_nothing_is_written(
    name: str, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, says = BAD[name]
    shutil.copytree(exported, tmp_path / "m")
    damage(tmp_path / "m")
    assert call("import-hf", tmp_path / "m", "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert said.startswith("jaxllm: ") and said.count("\n") == 1 and says in said, said
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_tied_model_may_repeat_its_head(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(exported, tmp_path / "m")
    config(tie_word_embeddings=True)(tmp_path / "m")
    assert call("import-hf", tmp_path / "m", "--out", tmp_path / "run") == 2
    assert "lm_head.weight differs from model.embed_tokens.weight" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    tensors(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))(tmp_path / "m")
    assert call("import-hf", tmp_path / "m", "--out", tmp_path / "run") == 0
    assert "head.kernel" not in SavedArrays(tmp_path / "run" / "checkpoints", 0).shapes


def test_remote_code_is_neither_run_nor_passed_on(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "m")
    config(auto_map={"AutoModelForCausalLM": "evil.Model"})(tmp_path / "m")
    (tmp_path / "m" / "evil.py").write_text("raise SystemExit('ran')")
    raw = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    (tmp_path / "m" / "tokenizer_config.json").write_text(
        json.dumps(raw | {"auto_map": {"AutoTokenizer": ["evil.T", None]}, "tokenizer_class": "T"})
    )
    assert call("import-hf", tmp_path / "m", "--out", tmp_path / "run") == 0
    assert call("export-hf", tmp_path / "run", "--out", tmp_path / "out") == 0
    assert not (tmp_path / "out" / "evil.py").exists()
    for name in ("config.json", "tokenizer_config.json"):
        assert "evil" not in (tmp_path / "out" / name).read_text()


# ---- what cannot be exported -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--step", "7"), "has no checkpoint 7; it has 20"),
        (("--dtype", "int8"), "--dtype int8 is no type of parameters"),
        (("--shard-size", "big"), "--shard-size big"),
        (("--family", "lama"), "did you mean 'llama'"),
    ],
)
def test_a_mistake_in_exporting(
    arguments: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("export-hf", STORED, "--out", tmp_path / "out", *arguments) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_kept(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in exported.iterdir()}
    assert call("export-hf", STORED, "--out", exported) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert before == {p.name: p.stat().st_mtime_ns for p in exported.iterdir()}


def test_what_does_not_fit_on_the_disk_is_refused_before_anything_is_read(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jaxllm.checkpoint.disk.free_bytes", lambda folder: 40_000)
    for command, source in (("export-hf", STORED), ("import-hf", exported)):
        assert call(command, source, "--out", tmp_path / "new" / "out") == 2
        said = capsys.readouterr().err
        assert "new/out needs " in said and "40.0 kB are free" in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(STORED, run)
    files = sorted((run / "checkpoints" / "00000020" / "params").rglob("*"), key=lambda p: p.stat().st_size)
    data = bytearray(files[-1].read_bytes())
    data[len(data) // 2] ^= 1
    files[-1].write_bytes(data)
    assert call("export-hf", run, "--out", tmp_path / "out") == 2
    assert "checkpoint 20 is damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_a_checkpoint_of_another_state_is_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The digest finds what can be read: one bit of the embedding, changed on its way in."""

    def changed(x: Any, first: int) -> tuple[int, int]:
        if x.shape == (320, 16):
            x = x.copy()
            x.view(np.uint32)[5, 3] ^= 1
        return array_lanes(x, first)

    monkeypatch.setattr("jaxllm.convert.saved.array_lanes", changed)
    assert call("export-hf", STORED, "--out", tmp_path / "out") == 2
    assert "params.embed.table: its digest is" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_no_family_can_say_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = open_run(STORED)
    model = dataclasses.replace(run.model, position=Alibi(), residual=PostNorm())
    with pytest.raises(ConfigError, match="no family can say this model"):
        family_of_model(model, Surroundings(length=64))
    shutil.copytree(STORED, tmp_path / "run")
    strange: RunConfig = dataclasses.replace(run, model=model)
    save_config(strange, tmp_path / "run")
    assert call("export-hf", tmp_path / "run", "--out", tmp_path / "out") == 2
    assert "no family can say this model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_json(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("export-hf", STORED, "--out", tmp_path / "x", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["family"] == "llama" and said["step"] == 20 and set(said["sha256"]) == {"model.safetensors"}
    assert call("import-hf", tmp_path / "x", "--out", tmp_path / "run", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["architecture"] == "LlamaForCausalLM" and said["parameters"] == 12208
