"""Mixtral (https://arxiv.org/abs/2401.04088): Mistral with a mixture of experts in every layer."""

from jaxllm.models.config import Attention, Model, Moe, RmsNorm
from jaxllm.models.families import names
from jaxllm.models.families.rope import read_rope, write_rope
from jaxllm.models.families.shared import every_layer, experts, heads, no_dropout, sizes, swiglu, window_of, written
from jaxllm.models.families.table import Family, Fields, Json, Map, Surroundings


def read(fields: Fields) -> Model:
    """config.json -> Model."""
    no_dropout(fields, "attention_dropout", "router_jitter_noise")
    model = Model(
        **sizes(fields),
        attention=Attention(**heads(fields, kv_heads=8)),
        ffn=Moe(
            experts=fields.take("num_local_experts", int, 8),
            top_k=fields.take("num_experts_per_tok", int, 2),
            expert=swiglu(fields),
            balance=fields.take("router_aux_loss_coef", float, 0.001),
        ),
        norm=RmsNorm(eps=fields.take("rms_norm_eps", float, 1e-5)),
        position=read_rope(fields, theta=1_000_000.0),
        pattern=every_layer(fields),
    )
    fields.finish()
    return model


def write(model: Model, around: Surroundings) -> Json:
    """Model -> config.json."""
    moe = experts(model)
    own = {
        "intermediate_size": moe.expert.width,
        "hidden_act": "silu",
        "sliding_window": window_of(model),
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "router_aux_loss_coef": moe.balance,
        "router_jitter_noise": 0.0,
    }
    return written(model, around) | own | write_rope(model.position)


def maps(model: Model) -> tuple[Map, ...]:
    """Its tensors."""
    moe = names.moe(f"{names.LAYER}.block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"})
    return (*names.outer(model), *names.attention(model), *moe, *names.norms(names.PRE_NORMS))


FAMILY = Family(
    name="mixtral", model_type="mixtral", architecture="MixtralForCausalLM", read=read, write=write, maps=maps
)
