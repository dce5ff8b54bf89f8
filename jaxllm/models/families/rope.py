"""Rotary embedding in config.json: `rope_parameters` today, `rope_theta` and `rope_scaling` in older files."""

import math
from collections.abc import Callable, Sequence
from typing import assert_never

from jaxllm.core.errors import ConfigError
from jaxllm.models.config import DynamicNtk, LinearScaling, Llama3Scaling, Position, Rope, Scaling, Yarn
from jaxllm.models.families.table import Fields, Json, is_number

SCALINGS = ("linear", "dynamic", "llama3", "yarn")


def read_rope(
    fields: Fields,
    *,
    theta: float = 10_000.0,
    fraction: float | None = None,
    names: tuple[str, str] = ("rope_theta", "partial_rotary_factor"),
    scalings: Sequence[str] = SCALINGS,
) -> Rope:
    """The position embedding of a config.json.

    theta, fraction: where it does not say; fraction None: the family turns whole heads. names: of these two in older
    files. scalings: those that the family knows.
    """
    both = fields.take("rope_parameters", (dict, type(None)), None)
    old = fields.take("rope_scaling", (dict, type(None)), None)
    theta = fields.take(names[0], float, theta)
    if fraction is None:
        fields.only(names[1], 1.0, None)
    else:
        fraction = fields.take(names[1], float, fraction)
    return rope_of(old or both or {}, fields, theta=theta, fraction=fraction, scalings=scalings)


def rope_of(
    given: Json, fields: Fields, *, theta: float, fraction: float | None = None, scalings: Sequence[str] = SCALINGS
) -> Rope:
    """One set of rope parameters -> Rope. ConfigError for a type or a parameter that we do not have."""
    raw = {name: value for name, value in given.items() if value is not None}
    kind = raw.pop("rope_type", raw.get("type", "default"))
    raw.pop("type", None)
    if kind != "default" and kind not in scalings:
        able = ", ".join(("default", *scalings))
        raise ConfigError(f"{fields.where}: rope_type={kind!r} is not supported; supported is {able}")

    def number(name: str, *default: float) -> float:
        value = raw.pop(name, *default) if default else raw.pop(name, None)
        if not is_number(value):
            raise ConfigError(f"{fields.where}: rope parameter {name}={value!r} of {kind!r} is not a number")
        return float(value)

    def whole(name: str, default: int) -> int:
        value = number(name, default)
        if not value.is_integer():
            raise ConfigError(f"{fields.where}: rope parameter {name}={value!r} of {kind!r} is not a whole number")
        return int(value)

    theta, part = number("rope_theta", theta), number("partial_rotary_factor", 1.0 if fraction is None else fraction)
    if fraction is None and part != 1.0:
        raise ConfigError(f"{fields.where}: partial_rotary_factor={part} is not supported here; heads turn whole")
    longest = fields.take("max_position_embeddings", int, 0)
    length = whole("original_max_position_embeddings", longest)
    scaling: Scaling | None = None
    if kind != "default" and min(length, longest) < 1:
        raise ConfigError(f"{fields.where}: rope_type={kind!r} needs max_position_embeddings")
    match kind:
        case "default":
            pass
        case "linear":
            scaling = LinearScaling(factor=number("factor"))
        case "dynamic":
            if length != longest:
                raise ConfigError(
                    f"{fields.where}: rope parameter original_max_position_embeddings={length} is not supported for "
                    f"'dynamic', which stretches beyond max_position_embeddings={longest}"
                )
            scaling = DynamicNtk(factor=number("factor"), original_length=longest)
        case "llama3":
            scaling = Llama3Scaling(
                factor=number("factor"),
                low_frequency_factor=number("low_freq_factor"),
                high_frequency_factor=number("high_freq_factor"),
                original_length=length,
            )
        case "yarn":
            factor, truncate = number("factor"), raw.pop("truncate", True)
            if not isinstance(truncate, bool):
                raise ConfigError(
                    f"{fields.where}: rope parameter truncate={truncate!r} of 'yarn' is not true or false"
                )
            scaling = Yarn(
                factor=factor,
                original_length=length,
                fast=number("beta_fast", 32.0) or 32.0,
                slow=number("beta_slow", 1.0) or 1.0,
                magnitude=_magnitude(raw, factor, number),
                truncate=truncate,
            )
        case _:
            raise AssertionError(f"a scaling {kind!r} that nobody reads")
    if raw:
        name = sorted(raw)[0]
        raise ConfigError(f"{fields.where}: rope parameter {name}={raw[name]!r} is not supported for {kind!r}")
    return Rope(theta=theta, fraction=part, scaling=scaling)


def _magnitude(raw: Json, factor: float, number: Callable[..., float]) -> float | None:
    """YaRN's factor on cosine and sine: said as it is, as a ratio (DeepSeek), or left to the paper. number: takes one
    of `raw`."""
    said, above, below = (
        number(name) if name in raw else None for name in ("attention_factor", "mscale", "mscale_all_dim")
    )
    if said is not None:
        return said
    if not above or not below or factor <= 1:
        return None
    if min(above, below) < 0:
        raise ConfigError(f"rope parameters mscale={above} and mscale_all_dim={below} must not be negative")
    return (0.1 * above * math.log(factor) + 1) / (0.1 * below * math.log(factor) + 1)


def write_rope(position: Position, *, always_fraction: bool = False) -> Json:
    """The fields of a config.json for a rotary embedding; none for another position signal. always_fraction: also where
    all of a head turns, in families that take a missing one for less."""
    if not isinstance(position, Rope):
        return {}
    found: Json = {"rope_parameters": parameters_of(position)}
    if always_fraction:
        found["rope_parameters"]["partial_rotary_factor"] = position.fraction
    if isinstance(position.scaling, DynamicNtk):
        # Nothing else says from where on it stretches.
        found["max_position_embeddings"] = position.scaling.original_length
    return found


def parameters_of(rope: Rope) -> Json:
    """One set of rope parameters."""
    found: Json = {"rope_type": "default", "rope_theta": rope.theta}
    if rope.fraction != 1.0:
        found["partial_rotary_factor"] = rope.fraction
    match rope.scaling:
        case None:
            pass
        case LinearScaling(factor=factor):
            found |= {"rope_type": "linear", "factor": factor}
        case DynamicNtk(factor=factor):
            found |= {"rope_type": "dynamic", "factor": factor}
        case Llama3Scaling() as s:
            found |= {
                "rope_type": "llama3",
                "factor": s.factor,
                "low_freq_factor": s.low_frequency_factor,
                "high_freq_factor": s.high_frequency_factor,
                "original_max_position_embeddings": s.original_length,
            }
        case Yarn() as s:
            found |= {
                "rope_type": "yarn",
                "factor": s.factor,
                "original_max_position_embeddings": s.original_length,
                "beta_fast": s.fast,
                "beta_slow": s.slow,
                "truncate": s.truncate,
            }
            if s.magnitude is not None:
                found["attention_factor"] = s.magnitude
        case _:
            assert_never(rope.scaling)
    return found
