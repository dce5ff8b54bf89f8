"""All families there are, and which one a config.json or a model belongs to."""

import dataclasses

from jaxllm.core.config import differences, encode, suggest
from jaxllm.core.errors import ConfigError
from jaxllm.models.config import Model, NormalInit
from jaxllm.models.families import (
    btlm,
    crystal,
    gemma2,
    gemma3,
    gpt_neox,
    llama,
    mistral,
    mixtral,
    olmo2,
    olmoe,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
)
from jaxllm.models.families.shared import canonical
from jaxllm.models.families.table import Family, Fields, Json, Surroundings

# A model that several can say is written as the first of them.
FAMILIES: tuple[Family, ...] = (
    llama.FAMILY,
    mistral.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    olmo2.FAMILY,
    gemma2.FAMILY,
    gemma3.FAMILY,
    phi3.FAMILY,
    gpt_neox.FAMILY,
    mixtral.FAMILY,
    olmoe.FAMILY,
    qwen3_moe.FAMILY,
    crystal.FAMILY,
    btlm.FAMILY,
)


def family_of_config(raw: Json, where: str) -> Family:
    """The family of a config.json. ConfigError names the architecture that we do not have."""
    kind = raw.get("model_type")
    for family in FAMILIES:
        if kind in (family.model_type, *family.published):
            return family
    known = [name for f in FAMILIES for name in (f.model_type, *f.published)]
    raise ConfigError(f"{where}: model_type={kind!r} is not one of {', '.join(known)}{suggest(str(kind), known)}")


def model_of_config(raw: Json, where: str) -> tuple[Family, Model]:
    """The family and the model of a config.json. ConfigError names the field, and its value, that we cannot follow."""
    family = family_of_config(raw, where)
    try:
        return family, family.read(Fields(raw, where))
    except ConfigError as err:  # a Model that its values contradict does not know where they are from
        raise ConfigError(str(err) if str(err).startswith(where) else f"{where}: {err}") from None


def family_of_model(model: Model, around: Surroundings, name: str | None = None) -> Family:
    """The first family (or the named one) that can say all of a model. ConfigError says what the nearest one cannot."""
    if name is not None and name not in {f.name for f in FAMILIES}:
        known = [f.name for f in FAMILIES]
        raise ConfigError(f"family {name!r} is not one of {', '.join(known)}{suggest(name, known)}")
    lacking = {}
    for family in FAMILIES:
        if name is None or family.name == name:
            refused, problems = _lost(family, model, around)
            if not problems:
                return family
            lacking[family.name] = (refused, len(problems), problems)
    nearest = min(lacking, key=lambda n: lacking[n][:2])
    raise ConfigError(
        f"no family can say this model; {nearest} is nearest and loses {'; '.join(lacking[nearest][2][:4])}"
    )


def _lost(family: Family, model: Model, around: Surroundings) -> tuple[bool, list[str]]:
    """What writing a model as a config.json of a family and reading it again changes, and whether it cannot be written
    or read at all."""
    plain = dataclasses.replace(canonical(model), init=NormalInit())
    try:
        back = family.read(Fields(family.write(plain, around), family.name))
    except (AttributeError, TypeError, ValueError) as err:  # ConfigError is a ValueError
        return True, [f"it cannot be written: {err}"]
    return False, differences(encode(plain), encode(canonical(back)))
