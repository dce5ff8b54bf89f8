"""Gemma 3's text models (https://arxiv.org/abs/2503.19786): Gemma 2 with norms of queries and keys for soft caps, five
layers with a window and a theta of their own to one that sees everything."""

from jaxllm.core.errors import ConfigError
from jaxllm.models.config import LayerKind, Model, QkNorm, Rope
from jaxllm.models.families import gemma2
from jaxllm.models.families.rope import parameters_of, rope_of
from jaxllm.models.families.shared import FULL, SLIDING, by_type, window_of
from jaxllm.models.families.table import Family, Fields, Json, Surroundings

_GLOBAL_THETA, _LOCAL_THETA = 1_000_000.0, 10_000.0


def read(fields: Fields) -> Model:
    """config.json -> Model."""
    fields.only("attn_logit_softcapping", None)
    shared = gemma2.read_shared(fields, final_cap=None)
    layers, every = shared["layers"], fields.take("sliding_window_pattern", int, 6)
    if every < 1:
        raise ConfigError(f"{fields.where}: sliding_window_pattern={every} is at least 1")
    wide, near = _ropes(fields)
    sliding = LayerKind(
        window=fields.take("sliding_window", (int, type(None)), 4096), position=None if near == wide else near
    )
    model = Model(
        **shared,
        attention=gemma2.read_attention(fields, qk_norm=QkNorm(over="head")),
        position=wide,
        pattern=by_type(fields, layers, lambda i: (i + 1) % every != 0, sliding=sliding),
    )
    fields.finish()
    return model


def _ropes(fields: Fields) -> tuple[Rope, Rope]:
    """The positions of layers that see everything and of those with a window."""
    both = fields.take("rope_parameters", (dict, type(None)), None) or {}
    scaling = fields.take("rope_scaling", (dict, type(None)), None) or {}
    theta = fields.take("rope_theta", float, _GLOBAL_THETA)
    local = fields.take("rope_local_base_freq", float, _LOCAL_THETA)
    odd = sorted(set(both) - {FULL, SLIDING})
    if odd:
        raise ConfigError(f"{fields.where}: rope_parameters has {odd[0]!r}; it has {FULL!r} and {SLIDING!r}")
    wide = (both.get(FULL) or {}) | scaling
    return rope_of(wide, fields, theta=theta), rope_of(both.get(SLIDING) or {}, fields, theta=local)


def write(model: Model, around: Surroundings) -> Json:
    """Model -> config.json."""
    wide = model.position
    near = next((model.position_of(kind) for kind in model.pattern if kind.window is not None), wide)
    if not isinstance(wide, Rope) or not isinstance(near, Rope):
        raise ValueError("position is not Rope")
    return gemma2.write_shared(model, around) | {
        "sliding_window": window_of(model),
        "rope_parameters": {FULL: parameters_of(wide), SLIDING: parameters_of(near)},
    }


FAMILY = Family(
    name="gemma3",
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    read=read,
    write=write,
    maps=gemma2.maps,
)
