"""OLMoE (https://arxiv.org/abs/2409.02060): a mixture of experts in every layer, norms over all heads of queries and of
keys."""

from jaxllm.models.config import Attention, Model, Moe, QkNorm, RmsNorm, Site
from jaxllm.models.families import names
from jaxllm.models.families.rope import read_rope, write_rope
from jaxllm.models.families.shared import experts, fixed_heads, no_dropout, sizes, swiglu, written
from jaxllm.models.families.table import Family, Fields, Json, Map, Surroundings

_SITES: tuple[Site, ...] = ("q", "k", "v", "o")


def read(fields: Fields) -> Model:
    """config.json -> Model."""
    no_dropout(fields, "attention_dropout")
    fields.only("clip_qkv", None)
    biased = fields.only("attention_bias", False, True)
    model = Model(
        **sizes(fields),
        attention=Attention(
            **fixed_heads(fields, kv=True), biases=_SITES if biased else (), qk_norm=QkNorm(over="width")
        ),
        ffn=Moe(
            experts=fields.take("num_experts", int, 64),
            top_k=fields.take("num_experts_per_tok", int, 8),
            expert=swiglu(fields),
            normalize=fields.only("norm_topk_prob", False, True),
            balance=fields.take("router_aux_loss_coef", float, 0.01),
        ),
        norm=RmsNorm(eps=fields.take("rms_norm_eps", float, 1e-5)),
        position=read_rope(fields),
    )
    fields.finish()
    return model


def write(model: Model, around: Surroundings) -> Json:
    """Model -> config.json."""
    moe = experts(model)
    own = {
        "intermediate_size": moe.expert.width,
        "hidden_act": "silu",
        "attention_bias": bool(model.attention.biases),
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "norm_topk_prob": moe.normalize,
        "router_aux_loss_coef": moe.balance,
        "clip_qkv": None,
    }
    return written(model, around) | own | write_rope(model.position)


def maps(model: Model) -> tuple[Map, ...]:
    """Its tensors, those of Qwen 3's mixtures too."""
    moe = names.moe(f"{names.LAYER}.mlp", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"})
    return (*names.outer(model), *names.attention(model), *moe, *names.norms(names.PRE_NORMS))


FAMILY = Family(name="olmoe", model_type="olmoe", architecture="OlmoeForCausalLM", read=read, write=write, maps=maps)
