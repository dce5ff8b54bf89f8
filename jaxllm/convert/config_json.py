"""config.json in both directions, around what a family says of the model."""

from typing import Any

from jaxllm.convert.vocabulary import Special
from jaxllm.core.config import Json
from jaxllm.core.errors import ConfigError
from jaxllm.models.config import Model
from jaxllm.models.families.table import Family, Surroundings


def write_config(family: Family, model: Model, around: Surroundings, special: Special, dtype: str) -> dict[str, Json]:
    """The config.json of an export. No transformers_version: no version of it wrote this."""
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "dtype": dtype,
        **family.write(model, around),
        **special.json,
    }


def length_of(raw: dict[str, Any], where: str) -> int:
    """The number of positions that a config.json was trained or made for."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = raw.get(name)
        if type(value) is int and 2 <= value < 1 << 31:  # positions are int32
            return value
    raise ConfigError(f"{where}: max_position_embeddings is missing or no length")
