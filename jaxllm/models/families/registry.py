"""All families there are, and which one a config.json or a model belongs to."""

import dataclasses

from jaxllm.core.config import differences, encode, suggest
from jaxllm.core.errors import ConfigError
from jaxllm.models.config import Model, NormalInit
from jaxllm.models.families import btlm, crystal, llama
from jaxllm.models.families.table import Family, Fields, Json, Surroundings

FAMILIES: tuple[Family, ...] = (llama.FAMILY, crystal.FAMILY, btlm.FAMILY)


def family_of_config(raw: Json, where: str) -> Family:
    """The family of a config.json. ConfigError names the architecture that we do not have."""
    kind = raw.get("model_type")
    for family in FAMILIES:
        if kind in (family.model_type, *family.published):
            return family
    known = [name for f in FAMILIES for name in (f.model_type, *f.published)]
    raise ConfigError(f"{where}: model_type={kind!r} is not one of {', '.join(known)}{suggest(str(kind), known)}")


def model_of_config(raw: Json, where: str) -> tuple[Family, Model]:
    """The family and the model of a config.json."""
    family = family_of_config(raw, where)
    return family, family.read(Fields(raw, where))


def family_of_model(model: Model, around: Surroundings, name: str | None = None) -> Family:
    """The first family (or the named one) that can say all of a model. ConfigError says what the nearest one cannot."""
    if name is not None and name not in {f.name for f in FAMILIES}:
        known = [f.name for f in FAMILIES]
        raise ConfigError(f"family {name!r} is not one of {', '.join(known)}{suggest(name, known)}")
    lacking = {}
    for family in FAMILIES:
        if name is None or family.name == name:
            problems = _lost(family, model, around)
            if not problems:
                return family
            lacking[family.name] = problems
    nearest = min(lacking, key=lambda n: len(lacking[n]))
    raise ConfigError(f"no family can say this model; {nearest} is nearest and loses {'; '.join(lacking[nearest][:4])}")


def _lost(family: Family, model: Model, around: Surroundings) -> list[str]:
    """What writing a model as a config.json of a family and reading it again changes."""
    plain = dataclasses.replace(model, init=NormalInit())
    try:
        back = family.read(Fields(family.write(plain, around), family.name))
    except ConfigError as err:
        return [str(err)]
    except (AttributeError, TypeError, ValueError) as err:
        return [f"it cannot be written: {err}"]
    return differences(encode(plain), encode(back))
