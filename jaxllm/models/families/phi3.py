"""Phi-3 (https://arxiv.org/abs/2404.14219): LLaMA's shape with queries, keys and values in one tensor, gate and up in
another, and a part of every head that turns."""

from jaxllm.models.config import Attention, Model, RmsNorm
from jaxllm.models.families import names
from jaxllm.models.families.rope import read_rope, write_rope
from jaxllm.models.families.shared import every_layer, ffn_width, heads, no_dropout, sizes, swiglu, window_of, written
from jaxllm.models.families.table import Family, Fields, Json, Map, Surroundings, one


def read(fields: Fields) -> Model:
    """config.json -> Model."""
    no_dropout(fields, "attention_dropout", "resid_pdrop", "embd_pdrop")
    fields.only("attention_bias", False)
    model = Model(
        **sizes(fields),
        attention=Attention(**heads(fields)),
        ffn=swiglu(fields),
        norm=RmsNorm(eps=fields.take("rms_norm_eps", float, 1e-5)),
        position=read_rope(fields, fraction=1.0, scalings=()),
        pattern=every_layer(fields),
    )
    # The length before the context was stretched: without a stretch it says nothing.
    fields.finish({"original_max_position_embeddings"})
    return model


def write(model: Model, around: Surroundings) -> Json:
    """Model -> config.json."""
    own = {
        "intermediate_size": ffn_width(model),
        "hidden_act": "silu",
        "sliding_window": window_of(model),
        "original_max_position_embeddings": around.length,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
    }
    return written(model, around) | own | write_rope(model.position)


def maps(model: Model) -> tuple[Map, ...]:
    """Its tensors."""
    part, ours = names.LAYER, "blocks.attention"
    qkv = Map(
        theirs=f"{part}.self_attn.qkv_proj.weight",
        ours=(f"{ours}.q", f"{ours}.k", f"{ours}.v"),
        layouts=("(HK)D", "(GK)D", "(GK)D"),
    )
    gate_up = Map(
        theirs=f"{part}.mlp.gate_up_proj.weight", ours=("blocks.mlp.gate", "blocks.mlp.up"), layouts=("FD", "FD")
    )
    return (
        *names.outer(model),
        qkv,
        one(f"{part}.self_attn.o_proj.weight", f"{ours}.o", "D(HK)"),
        gate_up,
        one(f"{part}.mlp.down_proj.weight", "blocks.mlp.down", "DF"),
        *names.norms(names.PRE_NORMS),
    )


FAMILY = Family(name="phi3", model_type="phi3", architecture="Phi3ForCausalLM", read=read, write=write, maps=maps)
