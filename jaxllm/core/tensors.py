"""What the tensors inside a layer are called, for policies that keep, offload or recompute them. No jax here."""

from typing import Final, Literal, get_args

Tensor = Literal[
    "input",
    "normed",
    "qkv",
    "attention",
    "attention_out",
    "widened",
    "experts_out",
    "ffn_out",
]

# Name -> (shape, what it is), in the order in which a layer computes them. Each is named where it is made
# (models/context.py, `named`). Naming one that no gradient needs keeps nothing.
TENSORS: Final[dict[Tensor, tuple[str, str]]] = {
    "input": ("BSD", "the residual stream as the layer is given it"),
    "normed": ("BSD, twice", "what attention and feed-forward are given: normed, where the norm comes first"),
    "qkv": ("BSHK, BSGK, BSGK", "queries, keys and values, after their rotation"),
    "attention": ("BSHK, and BHS in float32", "attention's result, and the log of its sums where the kernel has it"),
    "attention_out": ("BSD", "what attention adds to the residual stream, before a norm that comes last"),
    "widened": ("BSF, twice with a gate", "the up product and the gate's; AF at experts"),
    "experts_out": ("AD", "the down product of each expert, before it is weighed"),
    "ffn_out": ("BSD", "what the feed-forward part adds to the residual stream, before a norm that comes last"),
}

assert set(TENSORS) == set(get_args(Tensor))
