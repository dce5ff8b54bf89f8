"""LLaMA 1 to 3, and all that were trained in its shape: Amber, K2, DMaS, TinyLlama."""

from jaxllm.models.config import Attention, Model, RmsNorm, Site, SwiGlu
from jaxllm.models.families.rope import read_rope, write_rope
from jaxllm.models.families.table import Family, Fields, Json, Map, Surroundings, one

_SITES: tuple[Site, ...] = ("q", "k", "v", "o")


def read(fields: Fields) -> Model:
    """config.json -> Model."""
    heads = fields.take("num_attention_heads", int)
    width = fields.take("hidden_size", int)
    head_width = fields.take("head_dim", (int, type(None)), None) or width // heads
    biased = fields.only("attention_bias", False, True)
    fields.only("hidden_act", "silu")
    fields.only("attention_dropout", 0.0, 0)
    model = Model(
        vocab_size=fields.take("vocab_size", int),
        width=width,
        layers=fields.take("num_hidden_layers", int),
        attention=Attention(
            heads=heads,
            kv_heads=fields.take("num_key_value_heads", (int, type(None)), None) or heads,
            head_width=head_width,
            biases=_SITES if biased else (),
        ),
        ffn=SwiGlu(width=fields.take("intermediate_size", int), bias=fields.only("mlp_bias", False, True)),
        norm=RmsNorm(eps=fields.take("rms_norm_eps", float, 1e-6)),
        position=read_rope(fields),
        tied_embeddings=fields.only("tie_word_embeddings", False, True),
    )
    fields.finish()
    return model


def write(model: Model, around: Surroundings) -> Json:
    """Model -> config.json."""
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "intermediate_size": getattr(model.ffn, "width", 0),
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.attention.heads,
        "num_key_value_heads": model.attention.kv_heads,
        "head_dim": model.attention.head_width,
        "hidden_act": "silu",
        "max_position_embeddings": around.length,
        "rms_norm_eps": model.norm.eps,
        "tie_word_embeddings": model.tied_embeddings,
        "attention_bias": bool(model.attention.biases),
        "mlp_bias": getattr(model.ffn, "bias", False),
        "attention_dropout": 0.0,
    } | write_rope(model.position)


def maps(model: Model) -> tuple[Map, ...]:
    """Its tensors."""
    return (*outer(model), *attention(model), *mlp(model), *norms(("input_layernorm", "post_attention_layernorm")))


def outer(model: Model) -> tuple[Map, ...]:
    """Embedding, last norm and head, where they are usually found."""
    head = () if model.tied_embeddings else (one("lm_head.weight", "head.kernel", "VD"),)
    return (one("model.embed_tokens.weight", "embed.table", "VD"), one("model.norm.weight", "norm.scale", "D"), *head)


def attention(model: Model) -> tuple[Map, ...]:
    """Four projections with the biases and query-key norms that the model has."""
    at = "model.layers.{L}.self_attn"
    heads = {"q": "HK", "k": "GK", "v": "GK"}
    found = [one(f"{at}.{n}_proj.weight", f"blocks.attention.{n}", f"({hk})D") for n, hk in heads.items()]
    found.append(one(f"{at}.o_proj.weight", "blocks.attention.o", "D(HK)"))
    for site in model.attention.biases:
        layout = f"({heads[site]})" if site in heads else "D"
        found.append(one(f"{at}.{site}_proj.bias", f"blocks.attention.{site}_bias", layout))
    if model.attention.qk_norm is not None:
        whole = model.attention.qk_norm.over == "width"
        for n in ("q", "k"):
            found.append(
                one(f"{at}.{n}_norm.weight", f"blocks.attention.{n}_norm.scale", f"({heads[n]})" if whole else "K")
            )
    return tuple(found)


def mlp(model: Model) -> tuple[Map, ...]:
    """Gate, up and down, with their biases if the model has them."""
    at = "model.layers.{L}.mlp"
    layouts = {"gate": "FD", "up": "FD", "down": "DF"}
    found = [one(f"{at}.{n}_proj.weight", f"blocks.mlp.{n}", layout) for n, layout in layouts.items()]
    if getattr(model.ffn, "bias", False):
        found += [one(f"{at}.{n}_proj.bias", f"blocks.mlp.{n}_bias", layout[0]) for n, layout in layouts.items()]
    return tuple(found)


def norms(theirs: tuple[str, str]) -> tuple[Map, ...]:
    """The norms of attention and feed-forward under their names."""
    ours = ("attention_norm", "mlp_norm")
    return tuple(
        one(f"model.layers.{{L}}.{t}.weight", f"blocks.{o}.scale", "D") for t, o in zip(theirs, ours, strict=True)
    )


FAMILY = Family(name="llama", model_type="llama", architecture="LlamaForCausalLM", read=read, write=write, maps=maps)
