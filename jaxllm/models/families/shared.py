"""Fields that many a config.json has: sizes, heads, windows. Read and written here once."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from jaxllm.core.errors import ConfigError
from jaxllm.models.config import LayerKind, Model, Moe, SwiGlu
from jaxllm.models.families.table import Fields, Json, Surroundings

SLIDING, FULL = "sliding_attention", "full_attention"
_ALL_KEYS = LayerKind()

# ---- reading ---------------------------------------------------------------------------------------------------------


def sizes(fields: Fields, *, tied: bool = False) -> dict[str, Any]:
    """vocab_size, width, layers and tied_embeddings of a Model. tied: where the file does not say."""
    return {
        "vocab_size": fields.take("vocab_size", int),
        "width": fields.take("hidden_size", int),
        "layers": fields.layers("num_hidden_layers"),
        "tied_embeddings": fields.only("tie_word_embeddings", tied, not tied),
    }


def heads(
    fields: Fields, *, kv_heads: int | None = None, head_width: int | None = None, whole: bool = False
) -> dict[str, Any]:
    """heads, kv_heads and head_width of an Attention.

    kv_heads, head_width: where the file does not say (None: as many as heads, and width / heads). whole: transformers
    builds this family only if the heads divide the width, whatever the width of a head.
    """
    H, D = fields.take("num_attention_heads", int), fields.take("hidden_size", int)
    G = fields.take("num_key_value_heads", (int, type(None)), kv_heads)
    K = fields.take("head_dim", (int, type(None)), head_width)
    if H < 1 or (D % H and (whole or K is None)):
        raise ConfigError(f"{fields.where}: hidden_size={D} is not a multiple of num_attention_heads={H}")
    return {"heads": H, "kv_heads": H if G is None else G, "head_width": D // H if K is None else K}


def fixed_heads(fields: Fields, *, kv: bool) -> dict[str, Any]:
    """`heads` for a family whose heads are always width / heads wide; kv: it shares keys and values among them."""
    found = heads(fields, whole=True)
    H, G, K = found["heads"], found["kv_heads"], found["head_width"]
    fields.only("head_dim", fields.take("hidden_size", int) // H, None)
    if not kv:
        fields.only("num_key_value_heads", H, None)
        G = H
    return {"heads": H, "kv_heads": G, "head_width": K}


def no_dropout(fields: Fields, *names: str) -> None:
    """Dropout changes what training computes, and nothing here drops."""
    for name in names:
        fields.only(name, 0.0, 0, None)


def swiglu(fields: Fields) -> SwiGlu:
    """The feed-forward part without biases."""
    fields.only("hidden_act", "silu", "swish")
    return SwiGlu(width=fields.take("intermediate_size", int))


def every_layer(fields: Fields, window: int | None = None) -> tuple[LayerKind, ...]:
    """The pattern where all layers have the window of `sliding_window`. window: where the file does not say."""
    return (LayerKind(window=fields.take("sliding_window", (int, type(None)), window)),)


def by_type(fields: Fields, layers: int, slides: Callable[[int], bool], *, sliding: LayerKind) -> tuple[LayerKind, ...]:
    """The pattern of `layer_types`. slides: whether layer i, from 0, has a window where the file does not say."""
    types = fields.take("layer_types", (list, type(None)), None)
    if types is None:
        types = [SLIDING if slides(i) else FULL for i in range(layers)]
    if len(types) != layers:
        raise ConfigError(f"{fields.where}: layer_types has {len(types)} entries for num_hidden_layers={layers}")
    kinds = {SLIDING: sliding, FULL: _ALL_KEYS}
    for kind in types:
        if not isinstance(kind, str) or kind not in kinds:
            raise ConfigError(f"{fields.where}: layer_types={kind!r} is not supported; supported is {SLIDING}, {FULL}")
        if kind == SLIDING and sliding.window is None:
            raise ConfigError(f"{fields.where}: layer_types has {SLIDING}, and sliding_window is null")
    return shortest(tuple(kinds[kind] for kind in types))


def switched_window(fields: Fields) -> int | None:
    """`sliding_window` where `use_sliding_window` switches it (Qwen)."""
    on = fields.only("use_sliding_window", False, True)
    window: int | None = fields.take("sliding_window", (int, type(None)), 4096)
    return window if on else None


def shortest(kinds: tuple[LayerKind, ...]) -> tuple[LayerKind, ...]:
    """The shortest pattern that gives these layers."""
    n = len(kinds)
    return next(kinds[:p] for p in range(1, n + 1) if all(kinds[i] == kinds[i % p] for i in range(n)))


# ---- writing ---------------------------------------------------------------------------------------------------------


def written(model: Model, around: Surroundings) -> Json:
    """The fields that all families without LayerNorm write."""
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.attention.heads,
        "num_key_value_heads": model.attention.kv_heads,
        "head_dim": model.attention.head_width,
        "max_position_embeddings": around.length,
        "rms_norm_eps": model.norm.eps,
        "tie_word_embeddings": model.tied_embeddings,
        "attention_dropout": 0.0,
    }


def ffn_width(model: Model) -> int:
    """The feed-forward width of a dense model. ValueError for another."""
    if isinstance(model.ffn, Moe):
        raise ValueError("ffn is a mixture of experts")
    return model.ffn.width


def experts(model: Model) -> Moe:
    """The mixture of a model. ValueError if it has none."""
    if not isinstance(model.ffn, Moe):
        raise ValueError("ffn is not a mixture of experts")
    return model.ffn


def window_of(model: Model) -> int | None:
    """The first window that a layer has."""
    return next((kind.window for kind in model.pattern if kind.window is not None), None)


def types_of(model: Model) -> list[str]:
    """`layer_types`: what every layer is."""
    return [FULL if model.kind(i).window is None else SLIDING for i in range(model.layers)]


# ---- one way to say a thing ------------------------------------------------------------------------------------------


def canonical(model: Model) -> Model:
    """The same computation, said in the way in which families read it: the shortest pattern, a scale of attention by
    its name where it has one, and the coefficients of router losses that no config.json has at zero."""
    part = model.attention
    scale = part.scale if isinstance(part.scale, str) else _named(part.scale, part.head_width)
    kinds = [model.kind(i) for i in range(model.layers)]
    kinds = [replace(k, position=None) if k.position == model.position else k for k in kinds]
    ffn = replace(model.ffn, z_loss=0.0) if isinstance(model.ffn, Moe) else model.ffn
    attention = replace(part, scale=scale, biases=tuple(site for site in ("q", "k", "v", "o") if site in part.biases))
    return replace(model, attention=attention, ffn=ffn, pattern=shortest(tuple(kinds)))


def scale_of(fields: Fields, name: str, default: int, head_width: int) -> Literal["sqrt", "linear"] | float:
    """`attention.scale` where logits are divided by the square root of a field."""
    scalar = fields.take(name, (int, float), default)
    if scalar <= 0:
        raise ConfigError(f"{fields.where}: {name}={scalar} is positive")
    return _named(1 / math.sqrt(scalar), head_width)


def _named(factor: float, head_width: int) -> Literal["sqrt", "linear"] | float:
    """A factor on the scores of attention, by its name where it has one."""
    if factor == 1 / math.sqrt(head_width):
        return "sqrt"
    return "linear" if factor == 1 / head_width else factor


def scalar_of(model: Model) -> int | float:
    """The inverse of `scale_of`: a whole number where there is one."""
    part = model.attention
    if part.scale == "sqrt":
        return part.head_width
    if part.scale == "linear":
        return part.head_width**2
    exact = part.scale**-2
    return round(exact) if 1 / math.sqrt(max(1, round(exact))) == part.scale else exact
