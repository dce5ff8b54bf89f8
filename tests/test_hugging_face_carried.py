"""A run of Crystal's parts from training to transformers: its export stands alone and says the same text."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxllm import app
from jaxllm.checkpoint.layout import read_meta
from jaxllm.checkpoint.manifest import state_digest
from jaxllm.cli import main
from jaxllm.core.config import override
from jaxllm.models.config import Attention, LayerNorm, Model, NormalInit, Rope, SwiGlu
from jaxllm.run import run_folder
from tests.golden.config import golden
from tests.models.families import mup_in_numpy

STEPS = 3
MODEL = Model(
    vocab_size=512,
    width=24,
    layers=2,
    attention=Attention(heads=3, kv_heads=3, head_width=8, scale="linear", biases=("q", "k", "v", "o")),
    ffn=SwiGlu(width=40, bias=True),
    norm=LayerNorm(eps=1e-5),
    position=Rope(fraction=0.5, pairs="adjacent"),
    tied_embeddings=True,
    embedding_scale=14.6,
    logit_scale=0.2775,
    init=NormalInit(std=0.05, embedding_std=0.073, residual="depth_scaled", cut=2.0),
)


class Exported(NamedTuple):
    """A run, its export, and what transformers makes of that."""

    run: Path
    out: Path
    torch_model: Any


pytestmark = [pytest.mark.slow, pytest.mark.torch]


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    code = left.value.code
    return code if isinstance(code, int) else 0


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    root = tmp_path_factory.mktemp("root")
    config = dataclasses.replace(golden(), name="crystal", model=MODEL)
    changes = ["evaluation.every_steps=null", "evaluation.windows=4", "logging.tensorboard=false"]
    changes += [f"io.data_cache={root / 'data'}", f"io.compilation_cache={root / 'xla'}", f"io.root={root}"]
    run = override(config, changes)
    folder = Path(run_folder(run))
    app.train(run, folder, stop_at=STEPS, profile=None, as_json=False)
    out = root / "out"
    assert call("export-hf", folder, "--out", out) == 0
    from transformers import AutoModelForCausalLM

    return Exported(folder, out, AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True).eval())


def test_the_export_carries_its_class(exported: Exported) -> None:
    files = {p.name for p in exported.out.iterdir()}
    assert files >= {"configuration_jaxllm_mup.py", "modeling_jaxllm_mup.py", "model.safetensors", "tokenizer.json"}
    assert json.loads((exported.out / "config.json").read_text())["model_type"] == "jaxllm_crystal"


def test_logits_of_the_export_are_those_of_the_description(exported: Exported) -> None:
    import torch

    config = json.loads((exported.out / "config.json").read_text())
    tokens = np.random.default_rng(2).integers(0, 512, (1, 13))
    wanted = mup_in_numpy.crystal(config, load_file(exported.out / "model.safetensors"), tokens)
    with torch.no_grad():
        found = exported.torch_model(torch.tensor(tokens)).logits.numpy()
    assert np.abs(found - wanted).max() / np.abs(wanted).max() < 1e-5


def test_the_same_text_as_sampling_the_run(exported: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(exported.out)
    prompt = "def first(x):\n"
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    found = exported.torch_model.generate(**inputs, max_new_tokens=12, do_sample=False)
    text = tokenizer.decode(found[0])
    capsys.readouterr()
    assert call("sample", exported.run, "-p", prompt, "--tokens", "12", "--temperature", "0", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert text == prompt + said["text"] and len(said["text"]) > 0


def test_imported_again_it_is_the_run_to_the_bit(exported: Exported, tmp_path: Path) -> None:
    assert call("import-hf", exported.out, "--out", tmp_path / "again") == 0
    digests = [
        state_digest(read_meta(run / "checkpoints", step)[0].of_items(["params"]).values())
        for run, step in ((exported.run, STEPS), (tmp_path / "again", 0))
    ]
    assert digests[0] == digests[1]
