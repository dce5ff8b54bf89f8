"""Parameters, bytes and FLOPs of a model, from its config alone: no jax, no arrays."""

import math

from jaxllm.models.config import Model


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by dotted path, equal to what `decoder.describe` declares (a test holds them
    together)."""
    V, D, L, F = model.vocab_size, model.width, model.layers, model.ffn.width
    H, G, K = model.attention.heads, model.attention.kv_heads, model.attention.head_width
    found = {
        "embed.table": (V, D),
        "blocks.attention_norm.scale": (L, D),
        "blocks.attention.q": (L, D, H, K),
        "blocks.attention.k": (L, D, G, K),
        "blocks.attention.v": (L, D, G, K),
        "blocks.attention.o": (L, H, K, D),
        "blocks.mlp_norm.scale": (L, D),
        "blocks.mlp.gate": (L, D, F),
        "blocks.mlp.up": (L, D, F),
        "blocks.mlp.down": (L, F, D),
        "norm.scale": (D,),
    }
    return found if model.tied_embeddings else found | {"head.kernel": (D, V)}


def parameters(model: Model) -> int:
    """How many numbers are learned; a tied table counts once."""
    return sum(math.prod(shape) for shape in shapes(model).values())


def parameter_bytes(model: Model, bytes_each: int = 4) -> int:
    """Bytes of one copy of the parameters (float32 unless told)."""
    return parameters(model) * bytes_each


def matmul_parameters(model: Model) -> int:
    """Parameters that each token is multiplied with: layers and head, also a tied one; not the input look-up, norms."""
    layers = sum(
        math.prod(shape) for path, shape in shapes(model).items() if path.startswith("blocks.") and "norm" not in path
    )
    return layers + model.width * model.vocab_size


def flops_per_token(model: Model, seq_len: int, *, causal: bool = False) -> float:
    """FLOPs of forward and backward pass per token, matrix products only, nothing recomputed.

    6 per matmul parameter, and 12 * layers * heads * head_width * keys for attention's two products. `keys` is seq_len,
    as most published MFU figures count it (PaLM, https://arxiv.org/abs/2204.02311, appendix B); with `causal` it is
    (seq_len + 1) / 2, the keys that a position sees on average. A forward pass alone is a third of it.
    """
    keys = (seq_len + 1) / 2 if causal else seq_len
    attention = model.layers * model.attention.heads * model.attention.head_width
    return 6.0 * matmul_parameters(model) + 12.0 * attention * keys
