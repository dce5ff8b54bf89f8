"""BTLM and SlimPajama-DC: GPT-2 with SwiGLU, muP's factors and ALiBi.

https://huggingface.co/cerebras/btlm-3b-8k-base and https://huggingface.co/MBZUAI-LLM/SlimPajama-DC, config.json.
transformers has no such class: an export carries one of ours (convert/carried/), under a model_type of ours. Published
files with learned positions (Cerebras-GPT under muP), with stretched ALiBi or another activation are refused.
"""

from jaxllm.core.errors import ConfigError
from jaxllm.models.config import Alibi, Model
from jaxllm.models.families import mup_gpt2
from jaxllm.models.families.table import Family, Fields, Json, Surroundings


def read(fields: Fields) -> Model:
    """config.json -> Model."""
    fields.only("position_embedding_type", "alibi", default=None)
    fields.only("rotary_dim", None)
    fields.only("alibi_scaling", None)
    return mup_gpt2.read(fields, Alibi())


def write(model: Model, around: Surroundings) -> Json:
    """Model -> config.json."""
    if not isinstance(model.position, Alibi):
        raise ConfigError(f"btlm: position={model.position} is not supported; supported is Alibi")
    return mup_gpt2.write(model, around, "Btlm") | {"position_embedding_type": "alibi"}


FAMILY = Family(
    name="btlm",
    model_type="jaxllm_btlm",
    published=("btlm",),
    architecture="BtlmForCausalLM",
    read=read,
    write=write,
    maps=mup_gpt2.maps,
    carries=mup_gpt2.CARRIES,
    buffers=mup_gpt2.BUFFERS,
)
