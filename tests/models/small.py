"""Small decoders for the tests, and one independent of ours: float64 numpy, one layer after the other."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxllm.models.config import (
    Alibi,
    Attention,
    Capacity,
    GeGlu,
    Gelu,
    LayerKind,
    LayerNorm,
    LinearScaling,
    Model,
    Moe,
    NormalInit,
    ParallelNorm,
    Position,
    PostNorm,
    PreNorm,
    RmsNorm,
    Rope,
    SandwichNorm,
    SwiGlu,
)
from jaxllm.models.context import Context
from jaxllm.models.declare import Leaf
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
    """Initial values with scales away from one and biases away from zero, so that leaving one out is seen."""
    dice = np.random.default_rng(3)

    def draw(leaf: Leaf) -> np.ndarray:
        start = {"zeros": 0.0, "ones": 1.0, "normal": leaf.declaration.std * dice.standard_normal(leaf.shape)}
        return np.full(leaf.shape, start[leaf.declaration.init], np.float32)

    params = describe(model).tree(draw)  # in numpy: compiling `init` for every model would take minutes

    def shake(path: Any, x: np.ndarray) -> np.ndarray:
        name = str(path[-1])
        if "bias" in name or "scale" in name or "balance" in name:
            return x + dice.uniform(-0.5, 0.5, x.shape).astype(np.float32)
        return x

    return jax.tree_util.tree_map_with_path(shake, params)


def hidden(model: Model, params: Tree, inputs: Array, segments: Array, positions: Array, context: Context) -> Array:
    """Our forward pass, compiled."""
    return np.asarray(_compiled(model, context)(params, inputs, segments, positions))


@functools.cache
def _compiled(model: Model, context: Context) -> Callable[..., jax.Array]:
    declared = describe(model)

    def run(params: Tree, inputs: jax.Array, segments: jax.Array, positions: jax.Array) -> jax.Array:
        return declared.bind(params).hidden(inputs, segments, positions, context)[0]

    return jax.jit(run)


def logits_in_numpy(model: Model, params: Tree, inputs: Array, segments: Array, positions: Array) -> Array:
    """The forward pass as the papers have it, float64 [B, S, V], one layer after the other."""
    p: Any = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x, moe = p["embed"]["table"][inputs] * model.embedding_scale, isinstance(model.ffn, Moe)
    for layer in range(model.layers):
        block = jax.tree.map(lambda a: a[layer], p["blocks"])  # noqa: B023

        def norm(name: str, x: Array, block: Any = block, depth: int = layer + 1) -> Array:
            damping = np.sqrt(depth) if isinstance(model.residual, PreNorm) and model.residual.depth_scaled else 1.0
            return _norm(model, x, block[name]) / damping

        def attend(x: Array, block: Any = block, layer: int = layer) -> Array:
            return _attention(model, model.kind(layer), block["attention"], x, segments, positions)

        def feed(x: Array, block: Any = block) -> Array:
            return moe_in_numpy(model.ffn, block["mlp"], x)[0] if moe else _mlp(model.ffn, block["mlp"], x)

        match model.residual:
            case PreNorm():
                x = x + attend(norm("attention_norm", x))
                x = x + feed(norm("mlp_norm", x))
            case PostNorm():
                x = x + norm("attention_norm", attend(x))
                x = x + norm("mlp_norm", feed(x))
            case SandwichNorm():
                x = x + norm("attention_post_norm", attend(norm("attention_norm", x)))
                x = x + norm("mlp_post_norm", feed(norm("mlp_norm", x)))
            case ParallelNorm():
                x = x + attend(norm("attention_norm", x)) + feed(norm("mlp_norm", x))
    x = _norm(model, x, p["norm"])
    logits = model.logit_scale * (x @ (p["embed"]["table"].T if model.tied_embeddings else p["head"]["kernel"]))
    return np.asarray(_capped(logits, model.logit_softcap))


def _capped(x: Array, cap: float | None) -> Array:
    return x if cap is None else np.asarray(cap * np.tanh(x / cap))


def _norm(model: Model, x: Array, p: Any, dims: int = 1) -> Array:
    axes = tuple(range(-dims, 0))
    match model.norm:
        case RmsNorm(eps=eps, scale=kind):
            scale = p["scale"] + (kind == "from_one")
            return np.asarray(x / np.sqrt((x**2).mean(axes, keepdims=True) + eps) * scale)
        case LayerNorm(eps=eps):
            centred = x - x.mean(axes, keepdims=True)
            return np.asarray(
                centred / np.sqrt((centred**2).mean(axes, keepdims=True) + eps) * p["scale"] + p.get("bias", 0)
            )


def moe_in_numpy(moe: Moe, p: Any, x: Array) -> tuple[Array, Array, Array]:
    """(results, loads [E], penalties [B]) of one layer, token by token."""
    (B, S, _), E = x.shape, moe.experts
    y, loads, penalty = np.zeros_like(x), np.zeros((B, E), int), np.zeros(B)
    room = math.ceil(moe.dispatch.factor * S * moe.top_k / E) if isinstance(moe.dispatch, Capacity) else S
    for b in range(B):
        shares, squares = np.zeros(E), 0.0
        for s in range(S):
            logits = x[b, s] @ p["router"]
            scores = np.exp(logits) / np.exp(logits).sum() if moe.gate == "softmax" else 1 / (1 + np.exp(-logits))
            shares, squares = shares + scores / scores.sum() / S, squares + np.log(np.exp(logits).sum()) ** 2 / S
            ranked = scores + p.get("balance", 0)
            chosen = sorted(range(E), key=lambda e: (-ranked[e], e))[: moe.top_k]
            total = scores[chosen].sum() if moe.normalize else 1.0
            for e in chosen:
                if loads[b, e] < room:
                    kernels = {name: p[name][e] for name in ("gate", "up", "down") if name in p}
                    y[b, s] += moe.scale * scores[e] / total * _mlp(moe.expert, kernels, x[b, s])
                loads[b, e] += 1
        penalty[b] = moe.balance * E * (loads[b] / (S * moe.top_k)) @ shares + moe.z_loss * squares
    if moe.shared is not None:
        y = y + _mlp(moe.shared, p["shared"], x)
    return y, loads.sum(axis=0), penalty


def _mlp(mlp: Any, p: Any, x: Array) -> Array:
    def gelu(x: Array) -> Array:
        if mlp.gelu == "tanh":
            return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))
        return np.asarray(0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))))

    up = x @ p["up"] + p.get("up_bias", 0)
    gate = x @ p["gate"] + p.get("gate_bias", 0) if "gate" in p else up
    match mlp:
        case SwiGlu():
            h = gate / (1 + np.exp(-gate)) * up
        case GeGlu():
            h = gelu(gate) * up
        case Gelu():
            h = gelu(up)
    return np.asarray(h @ p["down"] + p.get("down_bias", 0))


def _attention(model: Model, kind: LayerKind, p: Any, h: Array, segments: Array, positions: Array) -> Array:
    part, position = model.attention, model.position_of(kind)
    q, k, v = (np.einsum("bsd,dhk->bshk", h, p[name]) + p.get(f"{name}_bias", 0) for name in "qkv")
    if part.qk_norm is not None:
        dims = 1 if part.qk_norm.over == "head" else 2
        q, k = _norm(model, q, p["q_norm"], dims), _norm(model, k, p["k_norm"], dims)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    q, k = (_turn(position, x, positions) for x in (q, k))
    share = part.heads // part.kv_heads
    k, v = k.repeat(share, axis=1), v.repeat(share, axis=1)
    scale = {"sqrt": 1 / np.sqrt(part.head_width), "linear": 1 / part.head_width}.get(str(part.scale), part.scale)
    logits = _capped(q @ k.swapaxes(2, 3) * scale, part.softcap)
    distance = np.arange(h.shape[1])[:, None] - np.arange(h.shape[1])
    if isinstance(position, Alibi):
        slopes = 2.0 ** (-8 * np.arange(1, part.heads + 1) / part.heads)  # for powers of two
        logits = logits - slopes[:, None, None] * distance
    seen = (segments[:, :, None] == segments[:, None, :]) & (distance >= 0)
    if kind.window is not None:
        seen &= distance < kind.window
    weight = np.exp(logits) * seen[:, None]
    return np.asarray(
        np.einsum("bhsk,hkd->bsd", weight / weight.sum(-1, keepdims=True) @ v, p["o"]) + p.get("o_bias", 0)
    )


def _turn(position: Position, x: Array, positions: Array) -> Array:
    if not isinstance(position, Rope):
        return x
    assert position.scaling is None or isinstance(position.scaling, LinearScaling)
    stretch = 1.0 if position.scaling is None else position.scaling.factor
    width = int(x.shape[-1] * position.fraction)
    x, rest = x[..., :width], x[..., width:]
    half = width // 2
    angle = positions[:, None, :, None] / stretch * position.theta ** (-np.arange(half) / half)
    if position.pairs == "half":
        pairs = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
        return np.concatenate([pairs.real, pairs.imag, rest], axis=-1)
    pairs = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)
    return np.concatenate([np.stack([pairs.real, pairs.imag], axis=-1).reshape(x.shape), rest], axis=-1)
