"""Parameters, bytes and FLOPs of a model, from its config alone: no jax, no arrays."""

import math

from jaxllm.models.config import Gelu, LayerNorm, Mlp, Model, Moe, SandwichNorm

Shapes = dict[str, tuple[int, ...]]


def shapes(model: Model) -> Shapes:
    """The shape of every parameter by dotted path, equal to what `decoder.describe` declares (a test holds them
    together)."""
    V, D = model.vocab_size, model.width
    found = {"embed.table": (V, D)} | _norm(model, "norm", (D,))
    if not model.tied_embeddings:
        found["head.kernel"] = (D, V)
    return found | {f"blocks.{path}": (model.layers, *shape) for path, shape in _block(model).items()}


def _block(model: Model) -> Shapes:
    D, part = model.width, model.attention
    H, G, K = part.heads, part.kv_heads, part.head_width
    found: Shapes = {}
    for name in ("attention_norm", "mlp_norm"):
        found |= _norm(model, name, (D,))
        if isinstance(model.residual, SandwichNorm):
            found |= _norm(model, name.replace("norm", "post_norm"), (D,))
    found |= {f"attention.{n}": (D, heads, K) for n, heads in (("q", H), ("k", G), ("v", G))}
    found["attention.o"] = (H, K, D)
    sites = {"q": (H, K), "k": (G, K), "v": (G, K), "o": (D,)}
    found |= {f"attention.{site}_bias": sites[site] for site in part.biases}
    if part.qk_norm is not None:
        over_head = part.qk_norm.over == "head"
        for name, heads in (("attention.q_norm", H), ("attention.k_norm", G)):
            found |= _norm(model, name, (K,) if over_head else (heads, K))
    if isinstance(model.ffn, Moe):
        return found | _moe(D, model.ffn)
    return found | _mlp("mlp", D, model.ffn)


def _norm(model: Model, name: str, shape: tuple[int, ...]) -> Shapes:
    found = {f"{name}.scale": shape}
    if isinstance(model.norm, LayerNorm) and model.norm.bias:
        found[f"{name}.bias"] = shape
    return found


def _mlp(name: str, D: int, mlp: Mlp) -> Shapes:
    F = mlp.width
    found: Shapes = {f"{name}.up": (D, F), f"{name}.down": (F, D)}
    if not isinstance(mlp, Gelu):
        found[f"{name}.gate"] = (D, F)
    if mlp.bias:
        found |= {f"{path}_bias": shape[1:] for path, shape in found.items()}
    return found


def _moe(D: int, moe: Moe) -> Shapes:
    E = moe.experts
    found = {"mlp.router": (D, E)} | {path: (E, *shape) for path, shape in _mlp("mlp", D, moe.expert).items()}
    if moe.bias_rate is not None:
        found["mlp.balance"] = (E,)
    return found if moe.shared is None else found | _mlp("mlp.shared", D, moe.shared)


def parameters(model: Model) -> int:
    """How many numbers are learned; a tied table counts once."""
    return sum(math.prod(shape) for shape in shapes(model).values())


def parameter_bytes(model: Model, bytes_each: int = 4) -> int:
    """Bytes of one copy of the parameters (float32 unless told)."""
    return parameters(model) * bytes_each


def matmul_parameters(model: Model) -> int:
    """Parameters that each token is multiplied with: matrices of the layers (of the experts only those that it is sent
    to) and head, also a tied one; not the input look-up, norms, biases."""
    found = model.width * model.vocab_size
    for path, shape in _block(model).items():
        if len(shape) < 2 or "norm" in path or path.endswith("_bias"):
            continue
        size = model.layers * math.prod(shape)
        if isinstance(model.ffn, Moe) and path in ("mlp.gate", "mlp.up", "mlp.down"):
            size = size // model.ffn.experts * model.ffn.top_k
        found += size
    return found


def flops_per_token(model: Model, seq_len: int, *, causal: bool = False) -> float:
    """FLOPs of forward and backward pass per token, matrix products only, nothing recomputed.

    6 per matmul parameter, and 12 * layers * heads * head_width * keys for attention's two products. `keys` is seq_len,
    as most published MFU figures count it (PaLM, https://arxiv.org/abs/2204.02311, appendix B); with `causal` it is
    (seq_len + 1) / 2, the keys that a position sees on average. A layer with a window counts at most that many keys.
    A forward pass alone is a third of it.
    """
    keys = 0.0
    for i in range(model.layers):
        window = model.kind(i).window
        seen = seq_len if window is None else min(window, seq_len)
        keys += seen - seen * (seen - 1) / (2 * seq_len) if causal else seen
    return 6.0 * matmul_parameters(model) + 12.0 * model.attention.heads * model.attention.head_width * keys
