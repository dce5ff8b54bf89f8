"""Small decoders for the tests, and one independent of ours: float64 numpy, one layer after the other."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxllm.models.config import Attention, Model, NoPosition, NormalInit, RmsNorm, Rope, SwiGlu
from jaxllm.models.context import Context
from jaxllm.models.declare import init
from jaxllm.models.decoder import describe

Array = np.ndarray[Any, Any]
Tree = Any

# Every size different; heads grouped 6:2; heads x head_width is not the width.
MODEL = Model(
    vocab_size=61,
    width=20,
    layers=3,
    attention=Attention(heads=6, kv_heads=2, head_width=8),
    ffn=SwiGlu(width=44),
    norm=RmsNorm(eps=1e-5),
    position=Rope(theta=100.0),
    init=NormalInit(std=0.3),
)


@functools.cache
def parameters(model: Model) -> Tree:
    """Initial values with norm scales away from one, so that leaving one out is seen."""
    declared = describe(model)
    params = jax.jit(lambda: init(declared, 3))()
    dice = np.random.default_rng(3)

    def shake(path: Any, x: jax.Array) -> jax.Array:
        return x * dice.uniform(0.5, 1.5, x.shape).astype(np.float32) if "scale" in str(path) else x

    return jax.tree_util.tree_map_with_path(shake, params)


def hidden(model: Model, params: Tree, inputs: Array, segments: Array, positions: Array, context: Context) -> Array:
    """Our forward pass, compiled."""
    return np.asarray(_compiled(model, context)(params, inputs, segments, positions))


@functools.cache
def _compiled(model: Model, context: Context) -> Callable[..., jax.Array]:
    declared = describe(model)

    def run(params: Tree, inputs: jax.Array, segments: jax.Array, positions: jax.Array) -> jax.Array:
        return declared.bind(params).hidden(inputs, segments, positions, context)

    return jax.jit(run)


def logits_in_numpy(model: Model, params: Tree, inputs: Array, segments: Array, positions: Array) -> Array:
    """LLaMA's forward pass as its paper has it, float64 [B, S, V]."""
    p: Any = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = p["embed"]["table"][inputs]
    for layer in range(model.layers):
        block = jax.tree.map(lambda a: a[layer], p["blocks"])  # noqa: B023
        h = _norm(x, block["attention_norm"]["scale"], model.norm.eps)
        x = x + _attention(model, block["attention"], h, segments, positions)
        h = _norm(x, block["mlp_norm"]["scale"], model.norm.eps)
        gate = h @ block["mlp"]["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ block["mlp"]["up"])) @ block["mlp"]["down"]
    x = _norm(x, p["norm"]["scale"], model.norm.eps)
    return np.asarray(x @ (p["embed"]["table"].T if model.tied_embeddings else p["head"]["kernel"]))


def _norm(x: Array, scale: Array, eps: float) -> Array:
    return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale)


def _attention(model: Model, p: Any, h: Array, segments: Array, positions: Array) -> Array:
    q, k, v = (np.einsum("bsd,dhk->bhsk", h, p[name]) for name in "qkv")
    q, k = (_turn(model, x, positions) for x in (q, k))
    share = model.attention.heads // model.attention.kv_heads
    k, v = k.repeat(share, axis=1), v.repeat(share, axis=1)
    logits = q @ k.swapaxes(2, 3) / np.sqrt(model.attention.head_width)
    seen = (segments[:, :, None] == segments[:, None, :]) & np.tri(h.shape[1], dtype=bool)
    weight = np.exp(logits) * seen[:, None]
    return np.einsum("bhsk,hkd->bsd", weight / weight.sum(-1, keepdims=True) @ v, p["o"])


def _turn(model: Model, x: Array, positions: Array) -> Array:
    match model.position:
        case NoPosition():
            return x
        case Rope(theta=theta):
            half = x.shape[-1] // 2
            angle = positions[:, None, :, None] * theta ** (-np.arange(half) / half)
            pairs = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
            return np.concatenate([pairs.real, pairs.imag], axis=-1)
