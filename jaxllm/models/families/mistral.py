"""Mistral 7B (https://arxiv.org/abs/2310.06825): LLaMA's shape with a window in every layer, or none."""

from jaxllm.models.config import Attention, Model, RmsNorm
from jaxllm.models.families import names
from jaxllm.models.families.rope import read_rope, write_rope
from jaxllm.models.families.shared import every_layer, ffn_width, heads, no_dropout, sizes, swiglu, window_of, written
from jaxllm.models.families.table import Family, Fields, Json, Surroundings


def read(fields: Fields) -> Model:
    """config.json -> Model."""
    no_dropout(fields, "attention_dropout")
    model = Model(
        **sizes(fields),
        attention=Attention(**heads(fields, kv_heads=8)),
        ffn=swiglu(fields),
        norm=RmsNorm(eps=fields.take("rms_norm_eps", float, 1e-6)),
        position=read_rope(fields),
        pattern=every_layer(fields, 4096),
    )
    fields.finish()
    return model


def write(model: Model, around: Surroundings) -> Json:
    """Model -> config.json."""
    own = {"intermediate_size": ffn_width(model), "hidden_act": "silu", "sliding_window": window_of(model)}
    return written(model, around) | own | write_rope(model.position)


FAMILY = Family(
    name="mistral", model_type="mistral", architecture="MistralForCausalLM", read=read, write=write, maps=names.usual
)
