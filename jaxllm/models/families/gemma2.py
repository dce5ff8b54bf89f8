"""Gemma 2 (https://arxiv.org/abs/2408.00118): norms on both sides, every other layer with a window, soft caps, scaled
embeddings, gated GELU."""

import math
from typing import Any, Literal

from jaxllm.models.config import Attention, GeGlu, LayerKind, Mlp, Model, RmsNorm, SandwichNorm, Site
from jaxllm.models.families import names
from jaxllm.models.families.rope import read_rope, write_rope
from jaxllm.models.families.shared import (
    by_type,
    ffn_width,
    heads,
    no_dropout,
    scalar_of,
    scale_of,
    sizes,
    types_of,
    window_of,
    written,
)
from jaxllm.models.families.table import Family, Fields, Json, Map, Surroundings

_SITES: tuple[Site, ...] = ("q", "k", "v", "o")
_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_GELU: dict[str, Literal["tanh", "exact"]] = {"gelu_pytorch_tanh": "tanh", "gelu": "exact"}
_CAP = (float, int, type(None))


def read(fields: Fields) -> Model:
    """config.json -> Model."""
    # Older files say the same thing twice, and it is the first that counts.
    fields.only("sliding_window_size", fields.take("sliding_window", (int, type(None)), 4096))
    shared = read_shared(fields, final_cap=30.0)
    cap = fields.take("attn_logit_softcapping", _CAP, 50.0)
    model = Model(
        **shared,
        attention=read_attention(fields, softcap=None if cap is None else float(cap)),
        position=read_rope(fields),
        pattern=by_type(
            fields,
            shared["layers"],
            lambda i: i % 2 == 0,
            sliding=LayerKind(window=fields.take("sliding_window", (int, type(None)), 4096)),
        ),
    )
    fields.finish({"hidden_act"})
    return model


def read_shared(fields: Fields, *, final_cap: float | None) -> dict[str, Any]:
    """What Gemma 2 and 3 have in common, as fields of a Model. final_cap: where the file does not say."""
    no_dropout(fields, "attention_dropout")
    fields.only("use_bidirectional_attention", False, None)
    size = sizes(fields, tied=True)
    gelu = _GELU[fields.only("hidden_activation", *_GELU, None) or "gelu_pytorch_tanh"]
    cap = fields.take("final_logit_softcapping", _CAP, final_cap)
    return size | {
        "ffn": GeGlu(width=fields.take("intermediate_size", int), gelu=gelu),
        "norm": RmsNorm(eps=fields.take("rms_norm_eps", float, 1e-6), scale="from_one"),
        "residual": SandwichNorm(),
        "embedding_scale": math.sqrt(size["width"]),
        "logit_softcap": None if cap is None else float(cap),
    }


def read_attention(fields: Fields, **own: Any) -> Attention:
    """The attention of Gemma 2 and 3."""
    found = heads(fields, kv_heads=4, head_width=256, whole=True)
    biased = fields.only("attention_bias", False, True)
    return Attention(
        **found,
        scale=scale_of(fields, "query_pre_attn_scalar", 256, found["head_width"]),
        biases=_SITES if biased else (),
        **own,
    )


def write(model: Model, around: Surroundings) -> Json:
    """Model -> config.json."""
    own = {"sliding_window": window_of(model), "attn_logit_softcapping": model.attention.softcap}
    return write_shared(model, around) | own | write_rope(model.position)


def write_shared(model: Model, around: Surroundings) -> Json:
    """The inverse of `read_shared` and `read_attention`."""
    return written(model, around) | {
        "intermediate_size": ffn_width(model),
        "hidden_activation": _activation(model.ffn),
        "attention_bias": bool(model.attention.biases),
        "query_pre_attn_scalar": scalar_of(model),
        "final_logit_softcapping": model.logit_softcap,
        "layer_types": types_of(model),
    }


def _activation(ffn: Mlp | Any) -> str:
    exact = isinstance(ffn, GeGlu) and ffn.gelu == "exact"
    return "gelu" if exact else "gelu_pytorch_tanh"


def maps(model: Model) -> tuple[Map, ...]:
    """Its tensors."""
    return (*names.outer(model), *names.attention(model), *names.mlp(model), *names.norms(_NORMS))


FAMILY = Family(name="gemma2", model_type="gemma2", architecture="Gemma2ForCausalLM", read=read, write=write, maps=maps)
