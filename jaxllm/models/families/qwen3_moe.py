"""Qwen 3's mixtures of experts (https://arxiv.org/abs/2505.09388)."""

from jaxllm.models.config import Attention, LayerKind, Model, Moe, QkNorm, RmsNorm, Site, SwiGlu
from jaxllm.models.families import olmoe
from jaxllm.models.families.rope import read_rope, write_rope
from jaxllm.models.families.shared import experts, heads, no_dropout, sizes, switched_window, window_of, written
from jaxllm.models.families.table import Family, Fields, Json, Surroundings

_SITES: tuple[Site, ...] = ("q", "k", "v", "o")


def read(fields: Fields) -> Model:
    """config.json -> Model."""
    no_dropout(fields, "attention_dropout")
    fields.only("hidden_act", "silu", "swish")
    fields.only("decoder_sparse_step", 1)
    fields.only("mlp_only_layers", None, [])
    biased = fields.only("attention_bias", False, True)
    # Newer files have the one name, the published ones the other.
    count = fields.take("num_experts", int, fields.take("num_local_experts", int, 128))
    model = Model(
        **sizes(fields),
        attention=Attention(**heads(fields, kv_heads=4), biases=_SITES if biased else (), qk_norm=QkNorm(over="head")),
        ffn=Moe(
            experts=count,
            top_k=fields.take("num_experts_per_tok", int, 8),
            expert=SwiGlu(width=fields.take("moe_intermediate_size", int, 768)),
            normalize=fields.only("norm_topk_prob", False, True),
            balance=fields.take("router_aux_loss_coef", float, 0.001),
        ),
        norm=RmsNorm(eps=fields.take("rms_norm_eps", float, 1e-6)),
        position=read_rope(fields),
        pattern=(LayerKind(window=switched_window(fields)),),
    )
    # The width of layers without experts, of which there are none, and where windows would begin in other families.
    fields.finish({"intermediate_size", "max_window_layers"})
    return model


def write(model: Model, around: Surroundings) -> Json:
    """Model -> config.json."""
    moe, window = experts(model), window_of(model)
    own = {
        "intermediate_size": moe.expert.width,
        "moe_intermediate_size": moe.expert.width,
        "hidden_act": "silu",
        "attention_bias": bool(model.attention.biases),
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "norm_topk_prob": moe.normalize,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "router_aux_loss_coef": moe.balance,
    }
    return written(model, around) | own | write_rope(model.position)


FAMILY = Family(
    name="qwen3_moe",
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    read=read,
    write=write,
    maps=olmoe.maps,
)
