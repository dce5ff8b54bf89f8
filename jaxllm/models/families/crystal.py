"""Crystal (CrystalCoder): GPT-2 with SwiGLU, muP's factors and rotary embedding of a part of every head.

https://huggingface.co/LLM360/Crystal, config.json. transformers has no such class: an export carries one of ours
(convert/carried/), under a model_type of ours. Verified in LLM360's port of the published weights to Megatron
(LLM360/crystalcoder-train, rotary_pos_embedding.py, rank_cmd_phase2.sh): adjacent numbers turn together, the first
`rotary_dim` of every head, with theta 10000, which config.json does not say.
"""

import math

from jaxllm.core.errors import ConfigError
from jaxllm.models.config import Model, Rope
from jaxllm.models.families import mup_gpt2
from jaxllm.models.families.table import Family, Fields, Json, Surroundings

_THETA = 10_000.0


def read(fields: Fields) -> Model:
    """config.json -> Model."""
    fields.only("position_embedding_type", "rotary", default=None)
    turned, K = fields.take("rotary_dim", int), mup_gpt2.head_width(fields)
    if not 2 <= turned <= K or turned % 2:
        raise ConfigError(f"{fields.where}: rotary_dim={turned} is even and at most n_embd / n_head = {K}")
    return mup_gpt2.read(fields, Rope(theta=_THETA, fraction=fraction_of(turned, K), pairs="adjacent"))


def write(model: Model, around: Surroundings) -> Json:
    """Model -> config.json."""
    position = model.position
    if not isinstance(position, Rope) or position.theta != _THETA:
        raise ConfigError(f"crystal: position={position} is not supported; supported is Rope with theta={_THETA}")
    return mup_gpt2.write(model, around, "Crystal") | {
        "position_embedding_type": "rotary",
        "rotary_dim": position.width(model.attention.head_width),
    }


def fraction_of(turned: int, K: int) -> float:
    """turned / K, or the number after it where K times that is less than `turned`."""
    fraction = turned / K
    return fraction if int(K * fraction) == turned else math.nextafter(fraction, 1.0)


FAMILY = Family(
    name="crystal",
    model_type="jaxllm_crystal",
    published=("crystalcoder",),
    architecture="CrystalForCausalLM",
    read=read,
    write=write,
    maps=mup_gpt2.maps,
    carries=mup_gpt2.CARRIES,
    buffers=mup_gpt2.BUFFERS,
)
