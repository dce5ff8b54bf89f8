"""Qwen 2 and 2.5 (https://arxiv.org/abs/2407.10671): biases on queries, keys and values, windows in the upper layers
where they are switched on."""

from jaxllm.models.config import Attention, LayerKind, Model, RmsNorm
from jaxllm.models.families import names
from jaxllm.models.families.rope import read_rope, write_rope
from jaxllm.models.families.shared import (
    SLIDING,
    by_type,
    ffn_width,
    heads,
    no_dropout,
    sizes,
    swiglu,
    switched_window,
    types_of,
    window_of,
    written,
)
from jaxllm.models.families.table import Family, Fields, Json, Surroundings


def read(fields: Fields) -> Model:
    """config.json -> Model."""
    no_dropout(fields, "attention_dropout")
    size = sizes(fields)
    model = Model(
        **size,
        attention=Attention(**heads(fields, kv_heads=32), biases=("q", "k", "v")),
        ffn=swiglu(fields),
        norm=RmsNorm(eps=fields.take("rms_norm_eps", float, 1e-6)),
        position=read_rope(fields),
        pattern=upper_windows(fields, size["layers"]),
    )
    fields.finish()
    return model


def upper_windows(fields: Fields, layers: int) -> tuple[LayerKind, ...]:
    """The pattern in which layers from `max_window_layers` on have the window."""
    window, first = switched_window(fields), fields.take("max_window_layers", int, 28)
    return by_type(fields, layers, lambda i: window is not None and i >= first, sliding=LayerKind(window=window))


def write(model: Model, around: Surroundings) -> Json:
    """Model -> config.json."""
    own = {"intermediate_size": ffn_width(model), "hidden_act": "silu"}
    return written(model, around) | own | write_windows(model) | write_rope(model.position)


def write_windows(model: Model) -> Json:
    """The inverse of `upper_windows`."""
    window, types = window_of(model), types_of(model)
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": types.index(SLIDING) if SLIDING in types else model.layers,
        "layer_types": types,
    }


FAMILY = Family(
    name="qwen2", model_type="qwen2", architecture="Qwen2ForCausalLM", read=read, write=write, maps=names.usual
)
