"""What a model is made of, as values. No arrays and no jax here: a config is read in milliseconds."""

from typing import Annotated, Literal

from pydantic import Field

from jaxllm.core.config import config, variant


@variant
class RmsNorm:
    """Root-mean-square norm with a learned scale (https://arxiv.org/abs/1910.07467)."""

    eps: float = 1e-5


@variant
class Rope:
    """Rotary position embedding, half-split pairs as in LLaMA (https://arxiv.org/abs/2104.09864)."""

    theta: float = 10_000.0


@variant
class NoPosition:
    """No position signal but the causal mask (https://arxiv.org/abs/2305.19466)."""


Position = Annotated[Rope | NoPosition, Field(discriminator="kind")]


@variant
class SwiGlu:
    """silu(x W_gate) * (x W_up) W_down (https://arxiv.org/abs/2002.05202)."""

    width: int


@config
class Attention:
    """Grouped-query attention (https://arxiv.org/abs/2305.13245): `heads` queries share `kv_heads` keys and values."""

    heads: int
    kv_heads: int
    head_width: int

    def __post_init__(self) -> None:
        if min(self.heads, self.kv_heads, self.head_width) < 1:
            raise ValueError("heads, kv_heads and head_width are at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")


@config
class NormalInit:
    """Matrices and embeddings from N(0, std). With residual='depth_scaled' the two matrices of a layer that write into
    the residual stream get std / sqrt(2 * layers) (GPT-2, Megatron)."""

    std: float = 0.02
    residual: Literal["plain", "depth_scaled"] = "plain"


@config
class Model:
    """A decoder-only transformer: `layers` equal blocks of attention and feed-forward, each behind a norm."""

    vocab_size: int
    width: int
    layers: int
    attention: Attention
    ffn: SwiGlu
    norm: RmsNorm = RmsNorm()
    position: Position = Rope()
    tied_embeddings: bool = False
    init: NormalInit = NormalInit()

    def __post_init__(self) -> None:
        if min(self.vocab_size, self.width, self.layers, self.ffn.width) < 1:
            raise ValueError("vocab_size, width, layers and ffn.width are at least 1")
        if isinstance(self.position, Rope) and self.attention.head_width % 2:
            raise ValueError(f"attention.head_width={self.attention.head_width} is odd; rotary embedding turns pairs")
