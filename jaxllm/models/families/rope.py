"""Rotary embedding in config.json: `rope_parameters` today, `rope_theta` and `rope_scaling` in older files."""

from typing import Any, assert_never

from jaxllm.core.errors import ConfigError
from jaxllm.models.config import DynamicNtk, LinearScaling, Llama3Scaling, Position, Rope, Scaling, Yarn
from jaxllm.models.families.table import Fields, Json


def read_rope(fields: Fields, *, fraction: float = 1.0, theta: float = 10_000.0) -> Rope:
    """The position embedding of a config.json. fraction, theta: where it does not say."""
    both = fields.take("rope_parameters", (dict, type(None)), None)
    old = fields.take("rope_scaling", (dict, type(None)), None)
    base = fields.take("rope_theta", float, theta)
    raw: dict[str, Any] = dict(both if both is not None else old or {})
    return rope_of(raw, fields, fraction=fraction, theta=base)


def rope_of(raw: dict[str, Any], fields: Fields, *, fraction: float, theta: float) -> Rope:
    """One set of rope parameters -> Rope. ConfigError for a type or a field that we do not have."""
    raw = dict(raw)
    kind = raw.pop("rope_type", raw.pop("type", "default"))
    raw.pop("type", None)
    length = raw.pop("original_max_position_embeddings", None)
    theta = float(raw.pop("rope_theta", theta))
    fraction = float(raw.pop("partial_rotary_factor", fraction))
    scaling: Scaling | None = None
    try:
        match kind:
            case "default":
                pass
            case "linear":
                scaling = LinearScaling(factor=float(raw.pop("factor")))
            case "dynamic":
                length = length or fields.take("max_position_embeddings", int)
                scaling = DynamicNtk(factor=float(raw.pop("factor")), original_length=length)
            case "llama3":
                scaling = Llama3Scaling(
                    factor=float(raw.pop("factor")),
                    low_frequency_factor=float(raw.pop("low_freq_factor")),
                    high_frequency_factor=float(raw.pop("high_freq_factor")),
                    original_length=length or fields.take("max_position_embeddings", int),
                )
            case "yarn":
                scaling = _yarn(raw, length or fields.take("max_position_embeddings", int))
            case _:
                raise ConfigError(f"{fields.where}: rope_type={kind!r} is not supported")
    except KeyError as err:
        raise ConfigError(f"{fields.where}: rope_type={kind!r} needs {err}") from None
    if raw:
        name = sorted(raw)[0]
        raise ConfigError(f"{fields.where}: rope parameter {name}={raw[name]!r} is not supported for {kind!r}")
    return Rope(theta=theta, fraction=fraction, scaling=scaling)


def _yarn(raw: dict[str, Any], length: int) -> Yarn:
    magnitude = raw.pop("attention_factor", None)
    return Yarn(
        factor=float(raw.pop("factor")),
        original_length=length,
        fast=float(raw.pop("beta_fast", None) or 32.0),
        slow=float(raw.pop("beta_slow", None) or 1.0),
        magnitude=None if magnitude is None else float(magnitude),
        truncate=bool(raw.pop("truncate", True)),
    )


def write_rope(position: Position) -> Json:
    """The fields of a config.json for a rotary embedding; none for another position signal."""
    return {"rope_parameters": parameters_of(position)} if isinstance(position, Rope) else {}


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
        case DynamicNtk(factor=factor, original_length=length):
            found |= {"rope_type": "dynamic", "factor": factor, "original_max_position_embeddings": length}
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
