"""LLaMA 1 to 3, and all that were trained in its shape: Amber, K2, DMaS, TinyLlama."""

from dataclasses import replace

from jaxllm.models.config import Attention, Model, RmsNorm, Site
from jaxllm.models.families import names
from jaxllm.models.families.rope import read_rope, write_rope
from jaxllm.models.families.shared import ffn_width, heads, no_dropout, sizes, swiglu, written
from jaxllm.models.families.table import Family, Fields, Json, Surroundings

_SITES: tuple[Site, ...] = ("q", "k", "v", "o")


def read(fields: Fields) -> Model:
    """config.json -> Model."""
    no_dropout(fields, "attention_dropout")
    biased = fields.only("attention_bias", False, True)
    model = Model(
        **sizes(fields),
        attention=Attention(**heads(fields, whole=True), biases=_SITES if biased else ()),
        ffn=replace(swiglu(fields), bias=fields.only("mlp_bias", False, True)),
        norm=RmsNorm(eps=fields.take("rms_norm_eps", float, 1e-6)),
        position=read_rope(fields),
    )
    fields.finish()
    return model


def write(model: Model, around: Surroundings) -> Json:
    """Model -> config.json."""
    return (
        written(model, around)
        | {
            "intermediate_size": ffn_width(model),
            "hidden_act": "silu",
            "attention_bias": bool(model.attention.biases),
            "mlp_bias": getattr(model.ffn, "bias", False),
        }
        | write_rope(model.position)
    )


FAMILY = Family(
    name="llama", model_type="llama", architecture="LlamaForCausalLM", read=read, write=write, maps=names.usual
)
