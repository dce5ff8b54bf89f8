"""GPT-NeoX (https://arxiv.org/abs/2204.06745) and Pythia: attention and feed-forward side by side, LayerNorm, a part of
every head that turns, queries, keys and values of each head in one tensor."""

from typing import Literal

from jaxllm.models.config import Attention, Gelu, LayerNorm, Model, ParallelNorm, PreNorm, Site
from jaxllm.models.families.rope import read_rope, write_rope
from jaxllm.models.families.shared import ffn_width, fixed_heads, no_dropout, sizes
from jaxllm.models.families.table import Family, Fields, Json, Map, Surroundings, one

_SITES: tuple[Site, ...] = ("q", "k", "v", "o")
_GELU: dict[str, Literal["tanh", "exact"]] = {
    "gelu": "exact",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_pytorch_tanh": "tanh",
}


def read(fields: Fields) -> Model:
    """config.json -> Model."""
    no_dropout(fields, "attention_dropout", "hidden_dropout")
    biased = fields.only("attention_bias", True, False)
    parallel = fields.only("use_parallel_residual", True, False)
    gelu = _GELU[fields.only("hidden_act", *_GELU)]
    model = Model(
        **sizes(fields),
        attention=Attention(**fixed_heads(fields, kv=False), biases=_SITES if biased else ()),
        ffn=Gelu(width=fields.take("intermediate_size", int), gelu=gelu),
        norm=LayerNorm(eps=fields.take("layer_norm_eps", float, 1e-5)),
        residual=ParallelNorm() if parallel else PreNorm(),
        position=read_rope(fields, fraction=0.25, names=("rotary_emb_base", "rotary_pct")),
    )
    fields.finish({"classifier_dropout"})
    return model


def write(model: Model, around: Surroundings) -> Json:
    """Model -> config.json."""
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "intermediate_size": ffn_width(model),
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.attention.heads,
        "hidden_act": "gelu" if getattr(model.ffn, "gelu", None) == "exact" else "gelu_pytorch_tanh",
        "max_position_embeddings": around.length,
        "layer_norm_eps": model.norm.eps,
        "tie_word_embeddings": model.tied_embeddings,
        "attention_bias": bool(model.attention.biases),
        "use_parallel_residual": isinstance(model.residual, ParallelNorm),
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
    } | write_rope(model.position, always_fraction=True)


def maps(model: Model) -> tuple[Map, ...]:
    """Its tensors."""
    layer, ours = "gpt_neox.layers.{L}", "blocks.attention"
    head = () if model.tied_embeddings else (one("embed_out.weight", "head.kernel", "VD"),)
    found = [
        one("gpt_neox.embed_in.weight", "embed.table", "VD"),
        *(one(f"gpt_neox.final_layer_norm.{t}", f"norm.{o}", "D") for t, o in _NORM),
        *head,
        Map(
            theirs=f"{layer}.attention.query_key_value.weight",
            ours=(f"{ours}.q", f"{ours}.k", f"{ours}.v"),
            layouts=("(HK)D", "(GK)D", "(GK)D"),
            join="heads",
        ),
        one(f"{layer}.attention.dense.weight", f"{ours}.o", "D(HK)"),
        one(f"{layer}.mlp.dense_h_to_4h.weight", "blocks.mlp.up", "FD"),
        one(f"{layer}.mlp.dense_h_to_4h.bias", "blocks.mlp.up_bias", "F"),
        one(f"{layer}.mlp.dense_4h_to_h.weight", "blocks.mlp.down", "DF"),
        one(f"{layer}.mlp.dense_4h_to_h.bias", "blocks.mlp.down_bias", "D"),
    ]
    if model.attention.biases:
        found.append(
            Map(
                theirs=f"{layer}.attention.query_key_value.bias",
                ours=(f"{ours}.q_bias", f"{ours}.k_bias", f"{ours}.v_bias"),
                layouts=("(HK)", "(GK)", "(GK)"),
                join="heads",
            )
        )
        found.append(one(f"{layer}.attention.dense.bias", f"{ours}.o_bias", "D"))
    for theirs, norm in (("input_layernorm", "attention_norm"), ("post_attention_layernorm", "mlp_norm")):
        found += [one(f"{layer}.{theirs}.{t}", f"blocks.{norm}.{o}", "D") for t, o in _NORM]
    return tuple(found)


_NORM = (("weight", "scale"), ("bias", "bias"))

FAMILY = Family(
    name="gpt_neox",
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    read=read,
    write=write,
    maps=maps,
    # The causal mask and its value, which older files carry.
    buffers=(r".*\.rotary_emb\.inv_freq", r".*\.attention\.(bias|masked_bias)"),
)
