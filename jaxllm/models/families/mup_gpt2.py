"""GPT-2's names, SwiGLU and muP's factors, as Cerebras publishes them: what Crystal and BTLM share.

Verified, in public code that opens the published weights: names and orientation of tensors (LLM360/crystalcoder-train,
tools/checkpoint/loader_crystalcoder_hf.py; flash-attention, models/btlm.py), `c_fc2` being the gate and `c_fc` what it
gates (those two; vLLM, models/jais.py), biases everywhere but in the head, one matrix for embedding and head, the
factors (Cerebras modelzoo, btlm_hf_cs.py). Matrices lie as GPT-2's do, [inputs, outputs].
"""

from jaxllm.core.errors import ConfigError
from jaxllm.models.config import Attention, LayerNorm, Model, Position, Site, SwiGlu
from jaxllm.models.families.table import Fields, Json, Map, Surroundings, one

CARRIES = ("configuration_jaxllm_mup.py", "modeling_jaxllm_mup.py")

# What published files hold and nothing was learned in: the causal mask, the slopes of ALiBi.
BUFFERS = (r"transformer\.h\.\d+\.attn\.(masked_)?bias", r"transformer\.relative_pe\.slopes")

_SITES: tuple[Site, ...] = ("q", "k", "v", "o")
_LATER = ("mup_embeddings_scale", "mup_output_alpha", "mup_width_scale", "mup_scale_qk_dot_by_d")
_FIRST = ("embeddings_scale", "output_logits_scale", "width_scale", "scale_qk_dot_by_d")

# Which of two equal ways of computing a softmax.
_HARMLESS = frozenset({"n_positions", "reorder_and_upcast_attn"})


def head_width(fields: Fields) -> int:
    """The width of a head."""
    width, heads = fields.take("n_embd", int), fields.take("n_head", int)
    if heads < 1 or width % heads:
        raise ConfigError(f"{fields.where}: n_embd={width} is not a multiple of n_head={heads}")
    return int(width // heads)


def read(fields: Fields, position: Position) -> Model:
    """config.json -> Model; the position signal is the family's to read."""
    heads, width, K = fields.take("n_head", int), fields.take("n_embd", int), head_width(fields)
    embedding_scale, logit_scale, by_width = _scales(fields)
    fields.only("activation_function", "swiglu", default=None)
    fields.only("scale_attn_weights", True)
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        fields.only(name, False)
    for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop"):
        fields.only(name, 0.0, 0)
    model = Model(
        vocab_size=fields.take("vocab_size", int),
        width=width,
        layers=fields.layers("n_layer"),
        attention=Attention(
            heads=heads, kv_heads=heads, head_width=K, scale="linear" if by_width else "sqrt", biases=_SITES
        ),
        ffn=SwiGlu(width=fields.take("n_inner", (int, type(None)), None) or 4 * width, bias=True),
        norm=LayerNorm(eps=fields.take("layer_norm_epsilon", float, 1e-5)),
        position=position,
        tied_embeddings=fields.only("tie_word_embeddings", True, False),
        embedding_scale=embedding_scale,
        logit_scale=logit_scale,
    )
    fields.finish(_HARMLESS)
    return model


def _scales(fields: Fields) -> tuple[float, float, bool]:
    """(factor on embeddings, factor on logits, are products of queries and keys divided by the head width).

    Two spellings. The later one gives the logits' factor as alpha * width_scale. The first one gives it whole:
    BTLM's first config.json as `output_logits_scale`, beside a width_scale that the forward pass does not use;
    SlimPajama-DC as `width_scale` (0.2775 = 2.22 * 256 / 2048; its own code could not be read, vLLM's JAIS does this).
    """
    first = [name for name in _FIRST if name in fields.raw]
    later = [name for name in _LATER if name in fields.raw]
    if first and later:
        raise ConfigError(f"{fields.where}: {first[0]} and {later[0]} are two spellings of muP's factors; keep one")
    if not first:
        factor = fields.take("mup_output_alpha", float, 1.0) * fields.take("mup_width_scale", float, 1.0)
        return fields.take("mup_embeddings_scale", float, 1.0), factor, fields.only(_LATER[3], False, True)
    width_scale = fields.take("width_scale", float, 1.0)
    factor = fields.take("output_logits_scale", float, width_scale)
    return fields.take("embeddings_scale", float, 1.0), factor, fields.only(_FIRST[3], False, True)


def write(model: Model, around: Surroundings, prefix: str) -> Json:
    """Model -> config.json but for the position signal. prefix: of the carried classes.

    The factor on the logits goes into mup_output_alpha whole: which part of it stands for the width is a matter of the
    learning rate and not of the model.
    """
    return {
        "vocab_size": model.vocab_size,
        "n_positions": around.length,
        "n_embd": model.width,
        "n_layer": model.layers,
        "n_head": model.attention.heads,
        "n_inner": getattr(model.ffn, "width", 0),
        "activation_function": "swiglu",
        "layer_norm_epsilon": model.norm.eps,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "scale_attn_weights": True,
        "tie_word_embeddings": model.tied_embeddings,
        "mup_embeddings_scale": model.embedding_scale,
        "mup_output_alpha": model.logit_scale,
        "mup_width_scale": 1.0,
        "mup_scale_qk_dot_by_d": model.attention.scale == "linear",
        "auto_map": {
            "AutoConfig": f"configuration_jaxllm_mup.{prefix}Config",
            "AutoModel": f"modeling_jaxllm_mup.{prefix}Model",
            "AutoModelForCausalLM": f"modeling_jaxllm_mup.{prefix}ForCausalLM",
        },
    }


def maps(model: Model) -> tuple[Map, ...]:
    """Its tensors. q, k and v stand side by side in one, every head of q before the first of k."""
    found = [one("transformer.wte.weight", "embed.table", "VD")]
    found += _both("transformer.ln_f", "norm", ("D", "D"), (".scale", ".bias"))
    if not model.tied_embeddings:
        found.append(one("lm_head.weight", "head.kernel", "VD"))
    at, ours = "transformer.h.{L}", "blocks"
    for theirs, name in (("ln_1", "attention_norm"), ("ln_2", "mlp_norm")):
        found += _both(f"{at}.{theirs}", f"{ours}.{name}", ("D", "D"), (".scale", ".bias"))
    qkv = tuple(f"{ours}.attention.{n}" for n in "qkv")
    found += [
        Map(theirs=f"{at}.attn.c_attn.weight", ours=qkv, layouts=("D(HK)", "D(GK)", "D(GK)"), join="columns"),
        Map(theirs=f"{at}.attn.c_attn.bias", ours=tuple(f"{n}_bias" for n in qkv), layouts=("(HK)", "(GK)", "(GK)")),
    ]
    found += _both(f"{at}.attn.c_proj", f"{ours}.attention.o", ("(HK)D", "D"))
    found += _both(f"{at}.mlp.c_fc", f"{ours}.mlp.up", ("DF", "F"))
    found += _both(f"{at}.mlp.c_fc2", f"{ours}.mlp.gate", ("DF", "F"))
    found += _both(f"{at}.mlp.c_proj", f"{ours}.mlp.down", ("FD", "D"))
    return tuple(found)


def _both(theirs: str, ours: str, layouts: tuple[str, str], ends: tuple[str, str] = ("", "_bias")) -> list[Map]:
    """A weight and its bias."""
    return [one(f"{theirs}.{n}", f"{ours}{e}", x) for n, e, x in zip(("weight", "bias"), ends, layouts, strict=True)]
