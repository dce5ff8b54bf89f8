"""What an export of Crystal or BTLM carries opens in transformers, and computes what is described."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxllm.models.families import btlm, crystal
from jaxllm.models.families.registry import model_of_config
from jaxllm.models.families.table import Family, Surroundings
from tests.models.families import mup_in_numpy, published

pytestmark = pytest.mark.torch

Array = np.ndarray[Any, Any]

CARRIED = Path(__file__).resolve().parents[2] / "jaxllm" / "convert" / "carried"
SMALL = {
    "crystal": (crystal.FAMILY, published.SMALL_CRYSTAL, mup_in_numpy.crystal),
    "btlm": (btlm.FAMILY, published.SMALL_BTLM, mup_in_numpy.btlm),
}
TOKENS = np.random.default_rng(5).integers(0, 53, (2, 17))


class Opened(NamedTuple):
    """A folder as an export leaves it, what transformers makes of it, and what it must compute."""

    folder: Path
    family: Family
    torch_model: Any
    tensors: dict[str, Array]
    logits: Array


def lay_out(folder: Path, name: str) -> dict[str, Array]:
    """A checkpoint with published names and random values, the config.json that we write, the files that we carry."""
    family, config, _ = SMALL[name]
    _, model = model_of_config(config, name)
    named = {"model_type": family.model_type, "architectures": [family.architecture]}
    written = family.write(model, Surroundings(length=config["n_positions"])) | named
    (folder / "config.json").write_text(json.dumps(written), encoding="utf-8")
    tensors = mup_in_numpy.random_tensors(config, 7)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for file in family.carries:
        shutil.copy(CARRIED / file, folder)
    return tensors


def load(folder: Path, **how: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **how).eval()


@pytest.fixture(scope="module", params=list(SMALL))
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    family, config, describe = SMALL[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    tensors = lay_out(folder, request.param)
    return Opened(folder, family, load(folder), tensors, describe(config, tensors, TOKENS))


def run(model: Any, tokens: Array, **more: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens), **more)


def error(found: Any, wanted: Array) -> float:
    return float(np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max())


def test_every_file_is_carried_by_a_family() -> None:
    files = {p.name for p in CARRIED.iterdir() if p.suffix == ".py"}
    assert files == {file for family, _, _ in SMALL.values() for file in family.carries}
    assert all((CARRIED / f).read_text(encoding="utf-8").startswith("# SPDX-License-Identifier: Apache") for f in files)


def test_logits_are_those_of_the_description(opened: Opened) -> None:
    assert type(opened.torch_model).__name__ == opened.family.architecture
    assert error(run(opened.torch_model, TOKENS).logits, opened.logits) < 1e-5


def test_eager_attention_and_half_the_bits(opened: Opened) -> None:
    import torch

    padded = np.concatenate([np.zeros((2, 3), np.int64), TOKENS], axis=1)
    mask = torch.tensor(np.arange(20)[None].repeat(2, 0) >= 3).long()
    eager = load(opened.folder, attn_implementation="eager")
    assert error(run(eager, TOKENS).logits, opened.logits) < 1e-5
    assert error(run(eager, padded, attention_mask=mask).logits[:, 3:], opened.logits) < 1e-5
    half = load(opened.folder, dtype=torch.bfloat16)
    assert 1e-4 < error(run(half, TOKENS).logits.float(), opened.logits) < 3e-2


def test_a_bias_that_is_lost_is_seen(opened: Opened) -> None:
    import torch

    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_fc2", "mlp.c_proj", "ln_1", "ln_2"):
        bias = opened.torch_model.get_parameter(f"transformer.h.1.{name}.bias")
        kept = bias.detach().clone()
        with torch.no_grad():
            bias.zero_()
            lost = error(run(opened.torch_model, TOKENS).logits, opened.logits)
            bias.copy_(kept)
        assert lost > 1e-3, name


def test_with_a_cache_the_logits_stay(opened: Opened) -> None:
    cache, found = None, []
    for piece in np.split(TOKENS, [5, 6, 7, 12], axis=1):
        out = run(opened.torch_model, piece, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        found.append(np.asarray(out.logits))
    assert error(np.concatenate(found, axis=1), opened.logits) < 1e-5


def test_generate_is_the_same_with_and_without_a_cache(opened: Opened) -> None:
    import torch

    how: dict[str, Any] = {"max_new_tokens": 9, "do_sample": False}
    prompt = torch.tensor(TOKENS)
    plain = opened.torch_model.generate(prompt, use_cache=False, **how)
    assert plain.shape == (2, 26)
    for kind in ("dynamic", "static"):
        assert torch.equal(opened.torch_model.generate(prompt, cache_implementation=kind, **how), plain), kind
    # The first new token is the likeliest by the description.
    assert plain[:, 17].tolist() == opened.logits[:, -1].argmax(-1).tolist()


def test_padding_on_the_left_changes_nothing(opened: Opened) -> None:
    import torch

    padded = np.concatenate([np.zeros((2, 3), np.int64), TOKENS], axis=1)
    mask = torch.tensor(np.arange(20)[None].repeat(2, 0) >= 3).long()
    assert error(run(opened.torch_model, padded, attention_mask=mask).logits[:, 3:], opened.logits) < 1e-5
    assert error(run(opened.torch_model, padded).logits[:, 3:], opened.logits) > 1e-3


def test_loss_and_what_is_kept_of_the_logits(opened: Opened) -> None:
    import torch

    out = run(opened.torch_model, TOKENS, labels=torch.tensor(TOKENS), output_hidden_states=True)
    shares = opened.logits - np.log(np.exp(opened.logits).sum(-1, keepdims=True))
    wanted = -np.take_along_axis(shares[:, :-1], TOKENS[:, 1:, None], axis=-1).mean()
    assert float(out.loss) == pytest.approx(wanted, rel=1e-5)
    assert len(out.hidden_states) == 3
    last = run(opened.torch_model, TOKENS, logits_to_keep=1).logits
    assert last.shape[1] == 1 and error(last, opened.logits[:, -1:]) < 1e-5


def test_saved_by_transformers_and_opened_again(opened: Opened, tmp_path: Path) -> None:
    opened.torch_model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) == set(opened.tensors)  # no head beside the embedding it is tied to
    for name, x in opened.tensors.items():
        np.testing.assert_array_equal(saved[name], x, err_msg=name)
    np.testing.assert_array_equal(run(load(tmp_path), TOKENS).logits, run(opened.torch_model, TOKENS).logits)
    raw = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    ours = json.loads((opened.folder / "config.json").read_text(encoding="utf-8"))
    assert model_of_config(raw, "config.json") == model_of_config(ours, "config.json")


def test_the_body_alone(opened: Opened) -> None:
    from transformers import AutoModel

    body = AutoModel.from_pretrained(opened.folder, trust_remote_code=True).eval()
    table = opened.tensors["transformer.wte.weight"]
    config = opened.torch_model.config
    logits = np.asarray(run(body, TOKENS).last_hidden_state) @ table.T * config.mup_output_alpha
    assert error(logits, opened.logits) < 1e-5


def test_buffers_of_published_checkpoints_are_passed_over(opened: Opened, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    shutil.copytree(opened.folder, tmp_path, dirs_exist_ok=True)
    extra = {
        "transformer.relative_pe.slopes": np.ones((6, 1), np.float32),
        "transformer.h.0.attn.bias": np.ones((1, 1, 4, 4), np.uint8),
        "transformer.h.0.attn.masked_bias": np.float32([-1e4]),
    }
    save_file(opened.tensors | extra, tmp_path / "model.safetensors", metadata={"format": "pt"})
    how: dict[str, Any] = {"trust_remote_code": True, "output_loading_info": True}
    model, told = AutoModelForCausalLM.from_pretrained(tmp_path, **how)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    assert error(run(model.eval(), TOKENS).logits, opened.logits) < 1e-5


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("crystal", {"rotary_dim": None}, "rotary_dim=None is even and at most"),
        ("btlm", {"position_embedding_type": "learned"}, "'learned' is not supported"),
        ("btlm", {"activation_function": "gelu"}, "'gelu' is not supported"),
        ("btlm", {"attn_pdrop": 0.1}, "dropout"),
        ("btlm", {"n_head": 5}, "n_embd=24 is not a multiple of n_head=5"),
    ],
)
def test_a_config_that_the_carried_files_do_not_have(
    tmp_path: Path, name: str, changed: dict[str, Any], words: str
) -> None:
    lay_out(tmp_path, name)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changed), encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        load(tmp_path)
