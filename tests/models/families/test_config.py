"""config.json read and written: older spellings, what is refused and how, and which family a model belongs to."""

import dataclasses
import math
from typing import Any

import pytest

from jaxllm.core.errors import ConfigError
from jaxllm.models.config import (
    Attention,
    Capacity,
    DynamicNtk,
    GeGlu,
    LayerKind,
    LinearScaling,
    Llama3Scaling,
    Model,
    Moe,
    NormalInit,
    PostNorm,
    PreNorm,
    QkNorm,
    RmsNorm,
    Rope,
    SandwichNorm,
    SwiGlu,
    Yarn,
)
from jaxllm.models.families.registry import FAMILIES, family_of_model, model_of_config
from jaxllm.models.families.shared import canonical, shortest
from jaxllm.models.families.table import Fields, Surroundings

Json = dict[str, Any]

SIZES: Json = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
YARN: Json = {"type": "yarn", "factor": 2.0}
AROUND = Surroundings(length=512)
MODEL = Model(
    vocab_size=61, width=24, layers=4, attention=Attention(heads=6, kv_heads=2, head_width=8), ffn=SwiGlu(width=37)
)


def read(model_type: str, **own: Any) -> Model:
    return model_of_config({"model_type": model_type} | SIZES | own, "config.json")[1]


def refused(model_type: str, **own: Any) -> str:
    with pytest.raises(ConfigError) as err:
        read(model_type, **own)
    said = str(err.value)
    assert said.startswith("config.json: ") and "\n" not in said
    return said


@pytest.mark.parametrize(
    ("fields", "rope"),
    [
        ({}, Rope()),
        ({"rope_theta": 5e5, "rope_scaling": None}, Rope(theta=5e5)),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, Rope(theta=5e5)),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, Rope(scaling=LinearScaling(factor=2.0))),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 3.0}},
            Rope(scaling=DynamicNtk(factor=3.0, original_length=512)),
        ),
        (
            {
                "rope_theta": 5e5,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 128,
                },
            },
            Rope(
                theta=5e5,
                scaling=Llama3Scaling(
                    factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_length=128
                ),
            ),
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
            Rope(scaling=Yarn(factor=4.0, original_length=128)),
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "beta_fast": None, "attention_factor": 1.5}},
            Rope(scaling=Yarn(factor=4.0, original_length=512, magnitude=1.5)),
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 10.0, "mscale": 1.0, "mscale_all_dim": 0.5}},
            Rope(
                scaling=Yarn(
                    factor=10.0,
                    original_length=512,
                    magnitude=(0.1 * math.log(10) + 1) / (0.05 * math.log(10) + 1),
                )
            ),
        ),
    ],
)
def test_positions_of_older_and_newer_files(fields: Json, rope: Rope) -> None:
    model = read("llama", **fields)
    assert model.position == rope
    family = FAMILIES[0]
    assert family.read(Fields(family.write(model, AROUND), "written")) == model


def test_where_dynamic_ntk_begins_is_the_length_that_is_written() -> None:
    rope = Rope(scaling=DynamicNtk(factor=2.0, original_length=77))
    assert FAMILIES[0].write(dataclasses.replace(MODEL, position=rope), AROUND)["max_position_embeddings"] == 77


def test_defaults_are_those_of_each_family() -> None:
    assert read("llama").attention == Attention(heads=6, kv_heads=2, head_width=4)
    assert read("llama", num_key_value_heads=None).attention.kv_heads == 6
    assert read("mistral").pattern == (LayerKind(window=4096),)
    assert read("mistral", sliding_window=None).pattern == (LayerKind(),)
    assert read("qwen2").attention.biases == ("q", "k", "v")
    assert read("qwen3").attention == Attention(heads=6, kv_heads=2, head_width=128, qk_norm=QkNorm(over="head"))
    olmo = read("olmo2")
    assert (olmo.residual, olmo.norm) == (PostNorm(), RmsNorm(eps=1e-5))
    gemma = read("gemma2")
    assert gemma.tied_embeddings and gemma.embedding_scale == math.sqrt(24)
    assert (gemma.attention.softcap, gemma.logit_softcap, gemma.residual) == (50.0, 30.0, SandwichNorm())
    assert (gemma.attention.head_width, gemma.attention.scale) == (256, "sqrt")
    assert read("gemma2", query_pre_attn_scalar=144).attention.scale == 1 / 12
    assert read("gemma2", query_pre_attn_scalar=64, head_dim=8).attention.scale == "linear"
    assert read("gemma3_text", head_dim=8).logit_softcap is None
    assert read("phi3").norm == RmsNorm(eps=1e-5)
    neox = read("gpt_neox", num_key_value_heads=6, rotary_pct=0.5, rotary_emb_base=500)
    assert neox.position == Rope(theta=500.0, fraction=0.5)
    assert read("gpt_neox", num_key_value_heads=6, rotary_pct=0.5, use_parallel_residual=False).residual == PreNorm()
    assert read("mixtral").position == Rope(theta=1e6)
    assert read("mixtral").ffn == Moe(experts=8, top_k=2, expert=SwiGlu(width=37), balance=0.001)
    assert read("olmoe").ffn == Moe(experts=64, top_k=8, expert=SwiGlu(width=37), normalize=False)


def test_windows_by_layer() -> None:
    near, all_ = LayerKind(window=9), LayerKind()
    on = {"use_sliding_window": True, "sliding_window": 9}
    assert read("qwen2", max_window_layers=3, **on).pattern == (all_, all_, all_, near)
    assert read("qwen2", max_window_layers=0, **on).pattern == (near,)
    assert read("qwen2", max_window_layers=4, **on).pattern == (all_,)
    assert read("qwen2", max_window_layers=0, sliding_window=9).pattern == (all_,)
    types = ["full_attention", "sliding_attention"] * 2
    assert read("qwen3", layer_types=types, max_window_layers=0, **on).pattern == (all_, near)
    assert read("gemma2", sliding_window=9).pattern == (near, all_)
    local = LayerKind(window=9, position=Rope(theta=500.0))
    gemma = read("gemma3_text", sliding_window=9, sliding_window_pattern=3, rope_local_base_freq=500)
    assert gemma.pattern == (local, local, all_)
    assert read("gemma3_text", sliding_window=9, rope_theta=1e4).pattern == (near,)
    assert read("qwen3_moe", **on).pattern == (near,)


@pytest.mark.parametrize(
    ("model_type", "own", "words"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ("llama", {"attention_dropout": 0.1}, "attention_dropout=0.1 is not supported"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5 is not supported"),
        ("llama", {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "rope_type='longrope'"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "rope parameter factor=None of 'linear' is not a number"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": "2"}}, "factor='2'"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "odd": 1}}, "odd=1"),
        (
            "llama",
            {"rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 64}},
            "original_max_position_embeddings=64",
        ),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 0}}, "factor=0.0 must be positive"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": -1}}, "factor=-1.0 must be positive"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "head_dim": 2}, "it has 2"),
        ("llama", {"rope_scaling": YARN | {"attention_factor": "x"}}, "attention_factor='x' of 'yarn' is not a number"),
        ("llama", {"rope_scaling": YARN | {"mscale": "x", "mscale_all_dim": 1}}, "mscale='x' of 'yarn' is not"),
        ("llama", {"rope_scaling": YARN | {"mscale": 1, "mscale_all_dim": -9}}, "mscale_all_dim=-9.0 must not be"),
        ("llama", {"rope_scaling": YARN | {"truncate": "false"}}, "truncate='false' of 'yarn' is not true or false"),
        ("llama", {"rope_scaling": YARN | {"beta_fast": -1}}, "fast=-1.0 must be positive"),
        (
            "llama",
            {"rope_scaling": YARN | {"original_max_position_embeddings": float("inf")}},
            "original_max_position_embeddings=inf of 'yarn' is not a number",
        ),
        (
            "llama",
            {"rope_scaling": YARN | {"original_max_position_embeddings": 9.5}},
            "original_max_position_embeddings=9.5 of 'yarn' is not a whole number",
        ),
        (
            "llama",
            {"rope_scaling": YARN | {"type": "llama3", "low_freq_factor": 2.0, "high_freq_factor": 2.0}},
            "low_frequency_factor=2.0 must be positive and below high_frequency_factor=2.0",
        ),
        ("llama", {"rope_theta": 0}, "theta=0.0 must be more than 1"),
        ("llama", {"rope_theta": float("inf")}, "rope_theta=inf is too large"),
        ("llama", {"rms_norm_eps": -1.0}, "eps=-1.0 must not be negative"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 is not supported"),
        ("gemma2", {"num_hidden_layers": 10**400}, "num_hidden_layers=100000000000000000000... is too large"),
        ("gemma2", {"hidden_size": 24 * 10**400}, "hidden_size=240000000000000000000... is too large"),
        ("gemma2", {"query_pre_attn_scalar": 10**400}, "query_pre_attn_scalar=100000000000000000000... is too large"),
        ("gpt_neox", {"num_key_value_heads": 6, "hidden_act": "gelu", "rotary_pct": 7.5}, "fraction=7.5 of"),
        ("llama", {"num_attention_heads": 7}, "hidden_size=24 is not a multiple of num_attention_heads=7"),
        ("llama", {"num_key_value_heads": 4}, "heads=6 is not a multiple of kv_heads=4"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} is a field that is not known"),
        ("llama", {"vocab_size": "61"}, "vocab_size='61' is not of type int"),
        ("llama", {"vocab_size": True}, "vocab_size=True is not a number"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types has 1 entries for num_hidden_layers=4"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 4}, "layer_types='chunked_attention' is not supported"),
        ("qwen2", {"layer_types": [["full_attention"]] * 4}, "layer_types=['full_attention'] is not supported"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 4}, "sliding_window is null"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not supported"),
        ("gemma2", {"hidden_activation": "relu"}, "hidden_activation='relu' is not supported"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar=0 is positive"),
        ("gemma2", {"sliding_window": 9, "sliding_window_size": 8}, "sliding_window_size=8 is not supported"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 is not supported"),
        ("gemma3_text", {"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters has 'rope_theta'"),
        ("phi3", {"resid_pdrop": 0.1}, "resid_pdrop=0.1 is not supported"),
        ("phi3", {"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, "rope_type='longrope' is not supported"),
        ("gpt_neox", {}, "num_key_value_heads=2 is not supported; supported is 6 or None"),
        ("gpt_neox", {"num_key_value_heads": 6, "hidden_dropout": 0.1}, "hidden_dropout=0.1"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise=0.1 is not supported"),
        ("mixtral", {"num_experts_per_tok": 9}, "top_k=9 lies in 1..experts=8"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv=8.0 is not supported"),
        ("olmoe", {"head_dim": 8}, "head_dim=8 is not supported"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "mlp_only_layers=[1] is not supported"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step=2 is not supported"),
    ],
)
def test_what_we_cannot_follow_is_named_with_its_value(model_type: str, own: Json, words: str) -> None:
    assert words in refused(model_type, **own)


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(ConfigError, match=r"config\.json: model_type='mamba' is not one of llama, mistral"):
        model_of_config({"model_type": "mamba"}, "config.json")
    with pytest.raises(ConfigError, match="did you mean 'qwen2'"):
        model_of_config({"model_type": "qwen_2"}, "config.json")


def variants() -> dict[str, Model]:
    def changed(model: Model = MODEL, **own: Any) -> Model:
        return dataclasses.replace(model, **own)

    def attention(**own: Any) -> Attention:
        return dataclasses.replace(MODEL.attention, **own)

    near, all_ = LayerKind(window=9), LayerKind()
    width, head = QkNorm(over="width"), QkNorm(over="head")
    moe = Moe(experts=5, top_k=2, expert=SwiGlu(width=13))
    gemma = changed(
        ffn=GeGlu(width=37),
        norm=RmsNorm(scale="from_one"),
        residual=SandwichNorm(),
        embedding_scale=math.sqrt(24),
        tied_embeddings=True,
    )
    return {
        "llama": changed(init=NormalInit(std=0.5)),
        "mistral": changed(pattern=(near,)),
        "qwen2": changed(attention=attention(biases=("v", "q", "k")), pattern=(all_, all_, near, near)),
        "qwen3": changed(attention=attention(qk_norm=head), pattern=(all_, near, all_, near)),
        "olmo2": changed(attention=attention(qk_norm=width), residual=PostNorm()),
        "gemma2": changed(gemma, attention=attention(softcap=7.0, scale="linear"), pattern=(near, all_, all_)),
        "gemma3": changed(
            gemma,
            attention=attention(qk_norm=head, scale=0.3),
            pattern=(LayerKind(window=9, position=Rope(theta=50.0)), LayerKind(position=Rope())),
        ),
        "phi3": changed(position=Rope(fraction=0.5)),
        "mixtral": changed(ffn=dataclasses.replace(moe, z_loss=0.1)),
        "olmoe": changed(
            ffn=dataclasses.replace(moe, normalize=False), attention=attention(qk_norm=width, head_width=4)
        ),
        "qwen3_moe": changed(ffn=moe, attention=attention(qk_norm=head)),
    }


@pytest.mark.parametrize("name", variants())
def test_a_model_is_written_as_the_first_family_that_can_say_it(name: str) -> None:
    model = variants()[name]
    family = family_of_model(model, AROUND)
    assert family.name == name
    back = family.read(Fields(family.write(model, AROUND), name))
    assert dataclasses.replace(canonical(model), init=NormalInit()) == canonical(back)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"residual": PreNorm(depth_scaled=True)}, "residual"),
        ({"logit_scale": 0.5}, "logit_scale"),
        ({"embedding_scale": 3.0}, "embedding_scale"),
        ({"position": Rope(pairs="adjacent")}, "pairs"),
    ],
)
def test_a_model_that_nobody_has_published_is_refused(change: Json, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"no family can say this model; llama is nearest and loses .*{words}"):
        family_of_model(dataclasses.replace(MODEL, **change), AROUND)


def test_experts_that_drop_tokens_are_no_published_model() -> None:
    moe = Moe(experts=5, top_k=2, expert=SwiGlu(width=13), dispatch=Capacity())
    with pytest.raises(ConfigError, match=r"mixtral is nearest and loses .*dispatch"):
        family_of_model(dataclasses.replace(MODEL, ffn=moe), AROUND)


def test_a_named_family_says_what_it_loses() -> None:
    with pytest.raises(ConfigError, match="olmo2 is nearest and loses"):
        family_of_model(MODEL, AROUND, "olmo2")
    with pytest.raises(ConfigError, match="mixtral is nearest and loses it cannot be written: ffn is not a mixture"):
        family_of_model(MODEL, AROUND, "mixtral")
    with pytest.raises(ConfigError, match=r"'mistrall' is not one of .*did you mean 'mistral'"):
        family_of_model(MODEL, AROUND, "mistrall")


def test_the_shortest_pattern() -> None:
    a, b = LayerKind(window=1), LayerKind()
    assert shortest((a, b, a, b, a)) == (a, b)
    assert shortest((a, a, a)) == (a,)
    assert shortest((a, a, b)) == (a, a, b)
