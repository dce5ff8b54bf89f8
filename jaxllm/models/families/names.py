"""Tensors under the names that most families use."""

from collections.abc import Mapping
from typing import Literal

from jaxllm.models.config import Model
from jaxllm.models.families.table import Map, one

LAYER = "model.layers.{L}"


def outer(model: Model) -> tuple[Map, ...]:
    """Embedding, last norm and head."""
    head = () if model.tied_embeddings else (one("lm_head.weight", "head.kernel", "VD"),)
    return (one("model.embed_tokens.weight", "embed.table", "VD"), one("model.norm.weight", "norm.scale", "D"), *head)


def attention(model: Model) -> tuple[Map, ...]:
    """Four projections with the biases and query-key norms that the model has."""
    at = f"{LAYER}.self_attn"
    heads = {"q": "HK", "k": "GK", "v": "GK"}
    found = [one(f"{at}.{n}_proj.weight", f"blocks.attention.{n}", f"({hk})D") for n, hk in heads.items()]
    found.append(one(f"{at}.o_proj.weight", "blocks.attention.o", "D(HK)"))
    for site in model.attention.biases:
        layout = f"({heads[site]})" if site in heads else "D"
        found.append(one(f"{at}.{site}_proj.bias", f"blocks.attention.{site}_bias", layout))
    return (*found, *qk_norms(model))


def qk_norms(model: Model) -> tuple[Map, ...]:
    """Norms of queries and keys, if the model has them."""
    if model.attention.qk_norm is None:
        return ()
    whole = model.attention.qk_norm.over == "width"
    return tuple(
        one(f"{LAYER}.self_attn.{n}_norm.weight", f"blocks.attention.{n}_norm.scale", f"({hk})" if whole else "K")
        for n, hk in (("q", "HK"), ("k", "GK"))
    )


def mlp(model: Model) -> tuple[Map, ...]:
    """Gate, up and down, with their biases if the model has them."""
    at = f"{LAYER}.mlp"
    layouts = {"gate": "FD", "up": "FD", "down": "DF"}
    found = [one(f"{at}.{n}_proj.weight", f"blocks.mlp.{n}", layout) for n, layout in layouts.items()]
    if getattr(model.ffn, "bias", False):
        found += [one(f"{at}.{n}_proj.bias", f"blocks.mlp.{n}_bias", layout[0]) for n, layout in layouts.items()]
    return tuple(found)


def moe(at: str, experts: Mapping[Literal["gate", "up", "down"], str]) -> tuple[Map, ...]:
    """Router and experts, a tensor for each, below `at`. experts: what they call gate, up and down."""
    layouts = {"gate": "FD", "up": "FD", "down": "DF"}
    found = [one(f"{at}.gate.weight", "blocks.mlp.router", "ED")]
    found += [one(f"{at}.experts.{{E}}.{t}.weight", f"blocks.mlp.{o}", layouts[o]) for o, t in experts.items()]
    return tuple(found)


def norms(theirs: Mapping[str, str]) -> tuple[Map, ...]:
    """Norms of the layers. theirs: ours -> their name."""
    return tuple(one(f"{LAYER}.{t}.weight", f"blocks.{o}.scale", "D") for o, t in theirs.items())


PRE_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


def usual(model: Model) -> tuple[Map, ...]:
    """All tensors of a dense model with norms before attention and feed-forward."""
    return (*outer(model), *attention(model), *mlp(model), *norms(PRE_NORMS))
