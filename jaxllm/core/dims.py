"""The legend: what a capital letter in an array's name means, and what a logical axis means. No jax here.

Letters end the names of arrays in array order (`q_BSHK`) and stand in einsum strings; scalars have no suffix. Config
fields use words. Logical axes are what the two sharding tables (parameters, activations) map to mesh axes.
"""

from typing import Final, Literal, get_args

DIMENSIONS: Final[dict[str, str]] = {
    "B": "batch: sequences",
    "S": "query position within a sequence",
    "T": "key position within a sequence",
    "D": "width of the residual stream",
    "H": "query heads",
    "G": "key-value heads (groups of query heads)",
    "R": "query heads per key-value head, H // G",
    "K": "width of a head",
    "F": "width of the feed-forward layer",
    "V": "vocabulary",
    "E": "experts",
    "C": "capacity of an expert",
    "J": "chosen experts of a token",
    "A": "places at experts, in their order: E and C folded into one, or the rows of a batch sorted by expert",
    "L": "layers",
    "P": "pipeline stages",
    "N": "micro-batches",
    "M": "rows of a matrix product: R and S, or S and J, folded into one",
}

Axis = Literal[
    "layers",
    "embed",
    "expert_embed",
    "norm",
    "heads",
    "kv_heads",
    "head",
    "ffn",
    "experts",
    "choices",
    "vocab",
    "batch",
    "seq",
    "resid_seq",
]

AXES: Final[dict[Axis, str]] = {
    "layers": "stacked layers (parameters)",
    "embed": "width of the residual stream, D",
    "expert_embed": "D in the kernels of experts, which are split by expert already (parameters)",
    "norm": "scale or bias over D: small and wanted whole everywhere, so not an `embed` (parameters)",
    "heads": "query heads, H",
    "kv_heads": "key-value heads, G",
    "head": "width of a head, K",
    "ffn": "width of the feed-forward layer, F",
    "experts": "experts of a mixture, E",
    "choices": "experts as a router scores them: small and wanted whole everywhere, so not `experts` (parameters)",
    "vocab": "vocabulary, V",
    "batch": "sequences, B (activations)",
    "seq": "positions inside attention, feed-forward and loss, S and T (activations)",
    "resid_seq": "positions of the residual stream and its norms; sequence parallelism splits it (activations)",
}

PARAM_AXES: Final[tuple[Axis, ...]] = (
    "layers",
    "embed",
    "expert_embed",
    "norm",
    "heads",
    "kv_heads",
    "head",
    "ffn",
    "experts",
    "choices",
    "vocab",
)
ACTIVATION_AXES: Final[tuple[Axis, ...]] = (
    "batch",
    "seq",
    "resid_seq",
    "embed",
    "heads",
    "kv_heads",
    "head",
    "ffn",
    "experts",
    "vocab",
)

# What a parameter is to the optimizer: weight decay and learning-rate multipliers go by it. A 'balance' is moved by the
# loads of experts after each update, and by no optimizer.
Role = Literal["embedding", "head", "matrix", "norm", "bias", "balance"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
TRAINED_ROLES: Final[tuple[Role, ...]] = tuple(role for role in ROLES if role != "balance")

assert set(AXES) == set(get_args(Axis)) == set(PARAM_AXES) | set(ACTIVATION_AXES)
