"""Crystal and BTLM: published config.json files are read, others refused; our decoder computes what they describe."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from configs import crystal_7b, slimpajama_dc_1b3
from jaxllm.convert.tensors import tensors_of
from jaxllm.core.errors import ConfigError
from jaxllm.models.config import Alibi, Attention, LayerNorm, Model, Rope, SwiGlu
from jaxllm.models.context import Context
from jaxllm.models.count import parameters, shapes
from jaxllm.models.decoder import describe
from jaxllm.models.families import btlm, crystal, mup_gpt2
from jaxllm.models.families.registry import family_of_model, model_of_config
from jaxllm.models.families.table import Family, Map, Surroundings
from jaxllm.ops.attention import alibi_slopes
from jaxllm.run import RunConfig
from tests.models.families import mup_in_numpy, published

Array = np.ndarray[Any, Any]

SITES: Any = ("q", "k", "v", "o")
TOKENS = np.random.default_rng(5).integers(0, 53, (2, 17))
SMALL = {
    "crystal": (crystal.FAMILY, published.SMALL_CRYSTAL, mup_in_numpy.crystal),
    "btlm": (btlm.FAMILY, published.SMALL_BTLM, mup_in_numpy.btlm),
}


def read(raw: dict[str, Any]) -> tuple[Family, Model]:
    return model_of_config(raw, "config.json")


# ---- config.json -----------------------------------------------------------------------------------------------------


def test_crystal_as_published() -> None:
    family, model = read(published.CRYSTAL)
    assert family is crystal.FAMILY
    assert model == Model(
        vocab_size=32032,
        width=4096,
        layers=32,
        attention=Attention(heads=32, kv_heads=32, head_width=128, scale="linear", biases=SITES),
        ffn=SwiGlu(width=10922, bias=True),
        norm=LayerNorm(eps=1e-5),
        position=Rope(theta=10_000.0, fraction=0.25, pairs="adjacent"),
        tied_embeddings=True,
        embedding_scale=14.6,
        logit_scale=0.13875,  # output_logits_scale of the pretraining parameters
    )
    assert round(parameters(model) / 1e9, 3) == 6.575
    assert read(published.CRYSTAL_CHAT) == (family, model)


def test_slimpajama_dc_as_published() -> None:
    family, model = read(published.SLIMPAJAMA_DC)
    assert family is btlm.FAMILY
    assert model == Model(
        vocab_size=50277,
        width=2048,
        layers=24,
        attention=Attention(heads=16, kv_heads=16, head_width=128, scale="linear", biases=SITES),
        ffn=SwiGlu(width=5461, bias=True),
        norm=LayerNorm(eps=1e-5),
        position=Alibi(),
        tied_embeddings=True,
        embedding_scale=14.6,
        logit_scale=0.2775,
    )
    assert parameters(model) == pytest.approx(1.311e9, rel=1e-3)


def test_btlm_is_one_model_in_both_spellings() -> None:
    family, model = read(published.BTLM)
    assert family is btlm.FAMILY
    first = read(published.BTLM_FIRST)[1]
    assert model.logit_scale == pytest.approx(0.222, rel=1e-12)
    assert dataclasses.replace(model, logit_scale=first.logit_scale) == first
    assert model.logit_scale == pytest.approx(first.logit_scale, rel=1e-15)
    assert round(parameters(model) / 1e9, 2) == 2.65


@pytest.mark.parametrize(
    ("run", "raw"),
    [
        (crystal_7b.phase1(), published.CRYSTAL),
        (crystal_7b.phase3(), published.CRYSTAL),
        (slimpajama_dc_1b3.slimpajama_dc_1b3(), published.SLIMPAJAMA_DC),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_runs_train_the_published_models(run: RunConfig, raw: dict[str, Any]) -> None:
    family, model = read(raw)
    assert dataclasses.replace(run.model, init=model.init) == model
    assert run.data.seq_len == raw["n_positions"]
    assert family_of_model(run.model, Surroundings(length=2048)) is family


@pytest.mark.parametrize("run", [crystal_7b.small(), slimpajama_dc_1b3.small()], ids=lambda run: run.name)
def test_their_small_siblings_are_said_by_the_same_families(run: RunConfig) -> None:
    assert family_of_model(run.model, Surroundings(length=64)).name in ("crystal", "btlm")


def test_seventeen_heads() -> None:
    model = read(published.JAIS_256M)[1]
    assert (model.attention.heads, model.attention.head_width) == (17, 64)


@pytest.mark.parametrize("raw", [published.CRYSTAL, published.SLIMPAJAMA_DC, published.BTLM, published.JAIS_256M])
def test_written_and_read_again(raw: dict[str, Any]) -> None:
    family, model = read(raw)
    around = Surroundings(length=2048)
    assert family_of_model(model, around) is family
    written = family.write(model, around) | {"model_type": family.model_type}
    assert read(written) == (family, model)
    assert set(written) <= set(published.CRYSTAL) | set(published.BTLM)
    carried = {f"{value.partition('.')[0]}.py" for value in written["auto_map"].values()}
    assert carried == set(family.carries)


def test_every_rotary_dim_is_read_as_itself() -> None:
    for head_width in range(2, 257):
        for turned in range(2, head_width + 1, 2):
            position = Rope(fraction=crystal.fraction_of(turned, head_width), pairs="adjacent")
            assert position.width(head_width) == turned
    # Where the quotient alone would come out one too small.
    assert any(int(k * (n / k)) < n for k in range(2, 257) for n in range(2, k + 1, 2))


@pytest.mark.parametrize(
    ("raw", "changed", "words"),
    [
        (published.CRYSTAL, {"position_embedding_type": "alibi"}, "position_embedding_type='alibi' is not supported"),
        (published.CRYSTAL, {"rotary_dim": 130}, "rotary_dim=130 is even and at most n_embd / n_head = 128"),
        (published.CRYSTAL, {"rotary_dim": 31}, "rotary_dim=31 is even"),
        (published.CRYSTAL, {"n_head": 33}, "n_embd=4096 is not a multiple of n_head=33"),
        (published.CRYSTAL, {"rope_theta": 500000.0}, "rope_theta=500000.0 is a field that is not known"),
        (published.CRYSTAL, {"attn_pdrop": 0.1}, "attn_pdrop=0.1 is not supported"),
        (published.CRYSTAL, {"scale_attn_weights": False}, "scale_attn_weights=False is not supported"),
        (published.CRYSTAL, {"width_scale": 0.1}, "width_scale and mup_embeddings_scale are two spellings"),
        (published.BTLM, {"activation_function": "gelu"}, "activation_function='gelu' is not supported"),
        (published.BTLM, {"activation_function": None}, "activation_function=None is not supported"),
        (published.BTLM, {"position_embedding_type": "learned"}, "position_embedding_type='learned' is not supported"),
        (published.BTLM, {"alibi_scaling": {"type": "linear", "factor": 2.0}}, "alibi_scaling={'type': 'linear'"),
        (published.BTLM, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
    ],
)
def test_refused(raw: dict[str, Any], changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(raw | changed)
    assert str(caught.value).startswith("config.json: ") and words in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "change", "words"),
    [
        (published.CRYSTAL, {"position": Rope(theta=5e5, pairs="adjacent")}, "theta=500000.0"),
        (published.CRYSTAL, {"position": Rope(fraction=0.25)}, "position.pairs"),
        (published.BTLM, {"ffn": SwiGlu(width=8)}, "ffn.bias"),
        (published.BTLM, {"norm": LayerNorm(bias=False)}, "norm.bias"),
        (published.BTLM, {"logit_softcap": 30.0}, "logit_softcap"),
    ],
)
def test_a_model_that_they_cannot_say(raw: dict[str, Any], change: dict[str, Any], words: str) -> None:
    family, model = read(raw)
    with pytest.raises(ConfigError) as caught:
        family_of_model(dataclasses.replace(model, **change), Surroundings(length=9), family.name)
    assert words in str(caught.value)


# ---- what is computed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [*range(1, 41), 71])
def test_slopes_are_the_published_ones(heads: int) -> None:
    np.testing.assert_allclose(alibi_slopes(heads), mup_in_numpy.published_slopes(heads), rtol=1e-12)


def test_slopes_of_six_heads_by_hand() -> None:
    assert alibi_slopes(6) == (2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3)


def our_logits(model: Model, maps: tuple[Map, ...], theirs: dict[str, Array]) -> Array:
    """Our decoder on their tensors, by the table; every one of them is used."""
    ours = {path: np.full(shape, np.nan, np.float32) for path, shape in shapes(model).items()}
    found = tensors_of(maps, shapes(model))
    assert {t.name: t.shape for t in found} == {name: x.shape for name, x in theirs.items()}
    for tensor in found:
        for part, x in tensor.scatter(theirs[tensor.name]):
            ours[part.path][part.index] = x
    declared = describe(model)
    params = declared.tree(lambda leaf: ours[leaf.path])
    return np.asarray(_run(model)(params, TOKENS.astype(np.int32)))


@functools.cache
def _run(model: Model) -> Any:
    declared = describe(model)

    def run(params: Any, tokens: jax.Array) -> jax.Array:
        decoder = declared.bind(params)
        segments, positions = np.zeros(TOKENS.shape, np.int32), np.arange(17, dtype=np.int32)[None].repeat(2, 0)
        return decoder.hidden(tokens, segments, positions, Context())[0] @ decoder.head_VD().T

    return jax.jit(run)


@functools.cache
def reference(name: str) -> tuple[dict[str, Array], Array]:
    _, config, logits = SMALL[name]
    tensors = mup_in_numpy.random_tensors(config, 7)
    return tensors, logits(config, tensors, TOKENS)


def error(found: Array, wanted: Array) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("name", SMALL)
def test_our_logits_are_those_of_the_description(name: str) -> None:
    family, config, _ = SMALL[name]
    tensors, wanted = reference(name)
    assert error(our_logits(read(config)[1], family.maps(read(config)[1]), tensors), wanted) < 1e-5


# Each is one thing read wrongly: in the model, or in the table.
WRONG_MODELS = [
    ("crystal", {"position": Rope(fraction=0.4)}),
    ("crystal", {"position": Rope(fraction=1.0, pairs="adjacent")}),
    ("crystal", {"embedding_scale": 1.0}),
    ("crystal", {"norm": LayerNorm(eps=1.0)}),
    ("btlm", {"position": Rope(pairs="adjacent")}),
    ("btlm", {"logit_scale": 2.22}),
    ("btlm", {"attention": Attention(heads=6, kv_heads=6, head_width=4, biases=SITES)}),
]


@pytest.mark.parametrize(("name", "change"), WRONG_MODELS)
def test_a_model_read_wrongly_is_seen(name: str, change: dict[str, Any]) -> None:
    model = read(SMALL[name][1])[1]
    tensors, wanted = reference(name)
    assert error(our_logits(dataclasses.replace(model, **change), mup_gpt2.maps(model), tensors), wanted) > 1e-3


@pytest.mark.parametrize(
    ("one", "other"), [(".c_fc.", ".c_fc2."), (".ln_1.", ".ln_2."), ("c_attn.weight", None)], ids=str
)
def test_a_table_that_is_wrong_is_seen(one: str, other: str | None) -> None:
    model = read(published.SMALL_CRYSTAL)[1]
    tensors, wanted = reference("crystal")

    def wrong(m: Map) -> Map:
        if other is None:
            return dataclasses.replace(m, ours=m.ours[::-1], layouts=m.layouts[::-1]) if m.theirs.endswith(one) else m
        name = m.theirs.replace(one, other) if one in m.theirs else m.theirs.replace(other, one)
        return dataclasses.replace(m, theirs=name)

    assert error(our_logits(model, tuple(map(wrong, mup_gpt2.maps(model))), tensors), wanted) > 1e-3
