"""Crystal and BTLM from their published description, float64 numpy: their names, their shapes, one token at a time.

Nothing here knows ours. A query is one row of the loop, its keys are those before it and itself, a rotation is a 2x2
matrix, ALiBi a number per key. Sources: jaxllm/models/families/mup_gpt2.py, crystal.py, btlm.py.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Tensors = dict[str, Array]
Json = dict[str, Any]
Placed = Callable[[Array, int], Array]  # (one head of a query or key, its position) -> the same, turned
Penalty = Callable[[int, int], float]  # (head, distance) -> what is taken off the score


def random_tensors(config: Json, seed: int) -> Tensors:
    """A checkpoint of this config with published names and shapes; every bias and scale away from its start."""
    D, F, dice = config["n_embd"], config["n_inner"], np.random.default_rng(seed)
    shapes = {"wte.weight": (config["vocab_size"], D), "ln_f.weight": (D,), "ln_f.bias": (D,)}
    for layer in range(config["n_layer"]):
        for name, inputs, outputs in (
            ("attn.c_attn", D, 3 * D),
            ("attn.c_proj", D, D),
            ("mlp.c_fc", D, F),
            ("mlp.c_fc2", D, F),
            ("mlp.c_proj", F, D),
        ):
            shapes |= {f"h.{layer}.{name}.weight": (inputs, outputs), f"h.{layer}.{name}.bias": (outputs,)}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"h.{layer}.{name}.weight": (D,), f"h.{layer}.{name}.bias": (D,)}
    return {f"transformer.{n}": dice.uniform(-0.6, 0.6, s).astype(np.float32) for n, s in shapes.items()}


def crystal(config: Json, tensors: Tensors, tokens: Array) -> Array:
    """Logits [sequences, length, vocabulary] of tokens [sequences, length]."""
    width = config["rotary_dim"]

    def turned(head: Array, position: int) -> Array:
        head = head.copy()
        for i in range(0, width, 2):
            angle = position / 10000 ** (i / width)
            c, s = np.cos(angle), np.sin(angle)
            head[i : i + 2] = np.array([[c, -s], [s, c]]) @ head[i : i + 2]
        return head

    return _logits(config, tensors, tokens, turned, lambda head, distance: 0.0)


def btlm(config: Json, tensors: Tensors, tokens: Array) -> Array:
    """Logits [sequences, length, vocabulary] of tokens [sequences, length]."""
    slopes = published_slopes(config["n_head"])
    return _logits(config, tensors, tokens, lambda head, position: head, lambda h, distance: slopes[h] * distance)


def published_slopes(heads: int) -> list[float]:
    """For a power of two n: r, r^2, ..., r^n with r = 2^(-8/n). Else those of the power of two below, and then the
    first, third, fifth ... of the slopes of twice that power, as many as are lacking."""
    below = 1
    while below * 2 <= heads:
        below *= 2
    ratio = 2 ** (-8 / below)
    found = [ratio**i for i in range(1, below + 1)]
    if below < heads:
        found += published_slopes(2 * below)[0::2][: heads - below]
    return found


def _logits(config: Json, tensors: Tensors, tokens: Array, turned: Placed, penalty: Penalty) -> Array:
    p = {name: x.astype(np.float64) for name, x in tensors.items()}
    rows = [_sequence(config, p, row, turned, penalty) for row in tokens]
    return np.stack(rows)


def _sequence(config: Json, p: Tensors, tokens: Array, turned: Placed, penalty: Penalty) -> Array:
    heads, D, eps = config["n_head"], config["n_embd"], config["layer_norm_epsilon"]
    K, length = D // heads, len(tokens)
    divisor = K if config["mup_scale_qk_dot_by_d"] else np.sqrt(K)
    x = p["transformer.wte.weight"][tokens] * config["mup_embeddings_scale"]

    def norm(name: str, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
        return np.asarray(centred / spread * p[f"{name}.weight"] + p[f"{name}.bias"])

    def linear(name: str, x: Array) -> Array:
        return np.asarray(x @ p[f"{name}.weight"] + p[f"{name}.bias"])

    for layer in range(config["n_layer"]):
        at = f"transformer.h.{layer}"
        qkv = linear(f"{at}.attn.c_attn", norm(f"{at}.ln_1", x))
        mixed = np.zeros((length, D))
        for h in range(heads):
            q, k, v = (qkv[:, n * D + h * K : n * D + (h + 1) * K] for n in range(3))
            q, k = (np.stack([turned(x[s], s) for s in range(length)]) for x in (q, k))
            for s in range(length):
                taken_off = np.array([penalty(h, s - t) for t in range(s + 1)])
                scores = k[: s + 1] @ q[s] / divisor - taken_off
                shares = np.exp(scores - scores.max())
                mixed[s, h * K : (h + 1) * K] = shares / shares.sum() @ v[: s + 1]
        x = x + linear(f"{at}.attn.c_proj", mixed)
        y = norm(f"{at}.ln_2", x)
        gate = linear(f"{at}.mlp.c_fc2", y)
        x = x + linear(f"{at}.mlp.c_proj", gate / (1 + np.exp(-gate)) * linear(f"{at}.mlp.c_fc", y))
    scale = config["mup_output_alpha"] * config["mup_width_scale"]
    head = p.get("lm_head.weight", p["transformer.wte.weight"])  # one matrix with the embedding, as published
    return np.asarray(norm("transformer.ln_f", x) @ head.T * scale)
