"""OLMo 2 (https://arxiv.org/abs/2501.00656): norms after attention and feed-forward, and over all heads of queries and
of keys."""

from jaxllm.models.config import Attention, Model, PostNorm, QkNorm, RmsNorm, Site
from jaxllm.models.families import names
from jaxllm.models.families.rope import read_rope, write_rope
from jaxllm.models.families.shared import ffn_width, heads, no_dropout, sizes, swiglu, written
from jaxllm.models.families.table import Family, Fields, Json, Map, Surroundings

_SITES: tuple[Site, ...] = ("q", "k", "v", "o")
_NORMS = {"attention_norm": "post_attention_layernorm", "mlp_norm": "post_feedforward_layernorm"}


def read(fields: Fields) -> Model:
    """config.json -> Model."""
    no_dropout(fields, "attention_dropout")
    biased = fields.only("attention_bias", False, True)
    model = Model(
        **sizes(fields),
        attention=Attention(**heads(fields), biases=_SITES if biased else (), qk_norm=QkNorm(over="width")),
        ffn=swiglu(fields),
        norm=RmsNorm(eps=fields.take("rms_norm_eps", float, 1e-5)),
        residual=PostNorm(),
        position=read_rope(fields),
    )
    fields.finish()
    return model


def write(model: Model, around: Surroundings) -> Json:
    """Model -> config.json."""
    own = {
        "intermediate_size": ffn_width(model),
        "hidden_act": "silu",
        "attention_bias": bool(model.attention.biases),
    }
    return written(model, around) | own | write_rope(model.position)


def maps(model: Model) -> tuple[Map, ...]:
    """Its tensors."""
    return (*names.outer(model), *names.attention(model), *names.mlp(model), *names.norms(_NORMS))


FAMILY = Family(name="olmo2", model_type="olmo2", architecture="Olmo2ForCausalLM", read=read, write=write, maps=maps)
