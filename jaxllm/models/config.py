"""What a model is made of, as values. No arrays and no jax here: a config is read in milliseconds.

A model is a choice of parts; a family (models/families/) is a choice that others have published.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from jaxllm.core.config import config, variant


def _positive(**numbers: float | None) -> None:
    for name, number in numbers.items():
        if number is not None and number <= 0:
            raise ValueError(f"{name}={number} must be positive")


def _not_negative(**numbers: float) -> None:
    for name, number in numbers.items():
        if number < 0:
            raise ValueError(f"{name}={number} must not be negative")


# ---- norms -----------------------------------------------------------------------------------------------------------


@variant
class RmsNorm:
    """Root-mean-square norm with a learned scale (https://arxiv.org/abs/1910.07467).

    scale: what is learned is the factor itself ('plain', starts at one) or its distance from one ('from_one', starts at
    zero, so that weight decay pulls towards one; Gemma).
    """

    eps: float = 1e-5
    scale: Literal["plain", "from_one"] = "plain"

    def __post_init__(self) -> None:
        _not_negative(eps=self.eps)


@variant
class LayerNorm:
    """Mean and variance norm with a learned scale and, if asked, bias (https://arxiv.org/abs/1607.06450)."""

    eps: float = 1e-5
    bias: bool = True

    def __post_init__(self) -> None:
        _not_negative(eps=self.eps)


Norm = Annotated[RmsNorm | LayerNorm, Field(discriminator="kind")]


@variant
class PreNorm:
    """x + f(norm(x)), with one more norm before the head. (https://arxiv.org/abs/2002.04745)

    depth_scaled: norms in layer l (from 1) give norm(x) / sqrt(l): LayerNorm Scaling, https://arxiv.org/abs/2502.05795.
    """

    depth_scaled: bool = False


@variant
class PostNorm:
    """x + norm(f(x)): OLMo 2 (https://arxiv.org/abs/2501.00656)."""


@variant
class SandwichNorm:
    """x + norm(f(norm(x))): Gemma 2 (https://arxiv.org/abs/2408.00118)."""


@variant
class ParallelNorm:
    """x + attention(norm_1(x)) + ffn(norm_2(x)), both from the same x: GPT-NeoX (https://arxiv.org/abs/2204.06745)."""


Residual = Annotated[PreNorm | PostNorm | SandwichNorm | ParallelNorm, Field(discriminator="kind")]

# ---- positions -------------------------------------------------------------------------------------------------------


@variant
class LinearScaling:
    """Positions divided by `factor` (https://arxiv.org/abs/2306.15595)."""

    factor: float

    def __post_init__(self) -> None:
        _positive(factor=self.factor)


@variant
class DynamicNtk:
    """theta grows with the sequence beyond `original_length`, as in Hugging Face's 'dynamic'."""

    factor: float
    original_length: int

    def __post_init__(self) -> None:
        _positive(factor=self.factor, original_length=self.original_length)


@variant
class Yarn:
    """Frequencies interpolated by wavelength, and queries and keys scaled (https://arxiv.org/abs/2309.00071).

    magnitude: the factor on cosine and sine; None is 0.1 ln(factor) + 1. truncate: bounds of the ramp rounded to whole
    dimensions.
    """

    factor: float
    original_length: int
    fast: float = 32.0
    slow: float = 1.0
    magnitude: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        _positive(
            factor=self.factor,
            original_length=self.original_length,
            fast=self.fast,
            slow=self.slow,
            magnitude=self.magnitude,
        )


@variant
class Llama3Scaling:
    """Low frequencies divided by `factor`, high ones kept, a ramp between (Llama 3.1)."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_length: int

    def __post_init__(self) -> None:
        _positive(factor=self.factor, original_length=self.original_length)
        if not 0 < self.low_frequency_factor < self.high_frequency_factor:
            raise ValueError(
                f"low_frequency_factor={self.low_frequency_factor} must be positive and below "
                f"high_frequency_factor={self.high_frequency_factor}"
            )


Scaling = Annotated[LinearScaling | DynamicNtk | Yarn | Llama3Scaling, Field(discriminator="kind")]


@variant
class Rope:
    """Rotary position embedding (https://arxiv.org/abs/2104.09864) of the first `fraction` of every head.

    pairs: which two numbers turn together: i and i + half ('half', LLaMA) or 2i and 2i + 1 ('adjacent', GPT-J).
    """

    theta: float = 10_000.0
    fraction: float = 1.0
    pairs: Literal["half", "adjacent"] = "half"
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        if self.theta <= 1:
            raise ValueError(f"theta={self.theta} must be more than 1")

    def width(self, head_width: int) -> int:
        """How many numbers of a head turn."""
        return int(head_width * self.fraction)


@variant
class Alibi:
    """A penalty linear in distance, a slope per head (https://arxiv.org/abs/2108.12409)."""


@variant
class NoPosition:
    """No position signal but the causal mask (https://arxiv.org/abs/2305.19466)."""


Position = Annotated[Rope | Alibi | NoPosition, Field(discriminator="kind")]

# ---- attention -------------------------------------------------------------------------------------------------------


Site = Literal["q", "k", "v", "o"]


@config
class QkNorm:
    """Norm of queries and keys before they are rotated: over each head (Qwen 3) or over all heads together (OLMo 2)."""

    over: Literal["head", "width"] = "head"


@config
class Attention:
    """Grouped-query attention (https://arxiv.org/abs/2305.13245): `heads` queries share `kv_heads` keys and values.

    scale: logits are divided by sqrt(head_width) ('sqrt') or by head_width ('linear', muP), or multiplied by a number.
    biases: which projections have one. softcap: logits become softcap * tanh(logits / softcap) (Gemma 2).
    """

    heads: int
    kv_heads: int
    head_width: int
    scale: Literal["sqrt", "linear"] | float = "sqrt"
    biases: tuple[Site, ...] = ()
    qk_norm: QkNorm | None = None
    softcap: float | None = None

    def __post_init__(self) -> None:
        if min(self.heads, self.kv_heads, self.head_width) < 1:
            raise ValueError("heads, kv_heads and head_width are at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        if len(set(self.biases)) < len(self.biases):
            raise ValueError(f"biases={self.biases} names a projection twice")
        if isinstance(self.scale, float) and self.scale <= 0:
            raise ValueError(f"scale={self.scale} must be positive")
        if self.softcap is not None and self.softcap <= 0:
            raise ValueError(f"softcap={self.softcap} is positive; null for none")


@config
class LayerKind:
    """What distinguishes a layer from others: how far back it sees (window: keys, itself included; None: all), and its
    position signal where it is not the model's."""

    window: int | None = None
    position: Position | None = None


# ---- feed-forward ----------------------------------------------------------------------------------------------------


@variant
class SwiGlu:
    """silu(x W_gate) * (x W_up) W_down (https://arxiv.org/abs/2002.05202). bias: one for each of the three."""

    width: int
    bias: bool = False


@variant
class GeGlu:
    """gelu(x W_gate) * (x W_up) W_down. gelu: 'tanh', the approximation that Gemma uses, or 'exact'."""

    width: int
    gelu: Literal["tanh", "exact"] = "tanh"
    bias: bool = False


@variant
class Gelu:
    """gelu(x W_up) W_down (https://arxiv.org/abs/1606.08415): GPT-2, GPT-NeoX."""

    width: int
    gelu: Literal["tanh", "exact"] = "exact"
    bias: bool = True


Mlp = Annotated[SwiGlu | GeGlu | Gelu, Field(discriminator="kind")]


@variant
class Dropless:
    """Every token is served by all experts it was sent to."""


@variant
class Capacity:
    """Each expert serves at most ceil(factor * tokens * top_k / experts) tokens of every sequence, the first ones of
    it; the others are passed by (https://arxiv.org/abs/2101.03961). Per sequence, so that layouts and accumulation
    agree."""

    factor: float = 1.25


Dispatch = Annotated[Dropless | Capacity, Field(discriminator="kind")]


@variant
class Moe:
    """A mixture of `experts` feed-forward networks, of which each token is sent to `top_k`.

    shared: a network that every token passes, beside them (https://arxiv.org/abs/2401.06066). gate: scores are a
    softmax over the experts or a sigmoid each. normalize: the chosen scores are divided by their sum; then all are
    multiplied by `scale`. balance: coefficient of the load-balance loss of every sequence
    (https://arxiv.org/abs/2101.03961), z_loss: of the router's z-loss (https://arxiv.org/abs/2202.08906).
    bias_rate: after each update a bias per expert, used to choose and not to weigh, moves by this much towards equal
    loads (https://arxiv.org/abs/2408.15664); None: no bias.
    """

    experts: int
    top_k: int
    expert: Mlp
    shared: Mlp | None = None
    gate: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = True
    scale: float = 1.0
    balance: float = 0.01
    z_loss: float = 0.0
    bias_rate: float | None = None
    dispatch: Dispatch = Dropless()

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.experts:
            raise ValueError(f"top_k={self.top_k} lies in 1..experts={self.experts}")
        if self.expert.bias:
            raise ValueError("expert.bias: experts have no biases; expert.bias=false")


Ffn = Annotated[SwiGlu | GeGlu | Gelu | Moe, Field(discriminator="kind")]

# ---- the whole -------------------------------------------------------------------------------------------------------


@config
class NormalInit:
    """Matrices from N(0, std), embeddings from N(0, embedding_std) (None: std), cut at `cut` standard deviations of the
    uncut distribution (None: not cut). With residual='depth_scaled' the matrices of a layer that write into the
    residual stream get std / sqrt(2 * layers) (GPT-2, Megatron). Biases are zero."""

    std: float = 0.02
    residual: Literal["plain", "depth_scaled"] = "plain"
    embedding_std: float | None = None
    cut: float | None = None


@config
class Model:
    """A decoder-only transformer: `layers` blocks of attention and feed-forward.

    pattern: the kinds of layer, repeated from the first layer on. embedding_scale: factor on the rows that are looked
    up. logit_scale: factor on the logits, logit_softcap: then softcap * tanh(logits / softcap).
    """

    vocab_size: int
    width: int
    layers: int
    attention: Attention
    ffn: Ffn
    norm: Norm = RmsNorm()
    residual: Residual = PreNorm()
    position: Position = Rope()
    pattern: tuple[LayerKind, ...] = (LayerKind(),)
    tied_embeddings: bool = False
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    init: NormalInit = NormalInit()

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise ValueError("; ".join(problems))

    def kind(self, layer: int) -> LayerKind:
        """What layer number `layer`, from 0, is."""
        return self.pattern[layer % len(self.pattern)]

    def position_of(self, kind: LayerKind) -> Position:
        """The position signal of a kind of layer."""
        return self.position if kind.position is None else kind.position


def _problems(model: Model) -> Iterator[str]:
    ffn = model.ffn
    widths = [m.width for m in (ffn.expert, ffn.shared) if m is not None] if isinstance(ffn, Moe) else [ffn.width]
    if min(model.vocab_size, model.width, model.layers, *widths) < 1:
        yield "vocab_size, width, layers and ffn.width are at least 1"
    if not 1 <= len(model.pattern) <= model.layers:
        yield f"pattern has {len(model.pattern)} kinds of layer; it has at least one and at most layers={model.layers}"
    for kind in model.pattern:
        if kind.window is not None and kind.window < 1:
            yield f"pattern: window={kind.window} is at least 1; null for all keys"
        position, K = model.position_of(kind), model.attention.head_width
        if not isinstance(position, Rope):
            continue
        if not 2 <= position.width(K) <= K or position.width(K) % 2:
            yield (
                f"position.fraction={position.fraction} of attention.head_width={K} is {position.width(K)} numbers; "
                f"rotary embedding turns pairs"
            )
        elif isinstance(position.scaling, DynamicNtk) and position.width(K) < 4:
            yield f"position.scaling=DynamicNtk needs 4 numbers that turn; of attention.head_width={K} it has 2"
    if model.logit_softcap is not None and model.logit_softcap <= 0:
        yield f"logit_softcap={model.logit_softcap} is positive; null for none"
