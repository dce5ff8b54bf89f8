"""What a family is: how its config.json and its tensors stand to ours. Tables, read in both directions by convert/."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from jaxllm.core.config import suggest
from jaxllm.core.errors import ConfigError
from jaxllm.models.config import Model

Json = dict[str, Any]

_STACK = "blocks."

# The axes of our arrays by letter (core/dims.py), without the leading L of what lies in `blocks`.
LETTERS: dict[str, str] = {
    "embed.table": "VD",
    "head.kernel": "DV",
    "attention.q": "DHK",
    "attention.k": "DGK",
    "attention.v": "DGK",
    "attention.o": "HKD",
    "attention.q_bias": "HK",
    "attention.k_bias": "GK",
    "attention.v_bias": "GK",
    "attention.o_bias": "D",
    "mlp.gate": "DF",
    "mlp.up": "DF",
    "mlp.down": "FD",
    "mlp.gate_bias": "F",
    "mlp.up_bias": "F",
    "mlp.down_bias": "D",
    "mlp.router": "DE",
    "mlp.balance": "E",
}


def letters(path: str, rank: int) -> str:
    """The axes of one of our arrays by letter: "LDHK" for blocks.attention.q, "LEDF" for experts' gates, "LHK" for a
    query norm over all heads. rank: how many it has. AssertionError for an array that nobody has named."""
    lead, key = ("L", path[len(_STACK) :]) if path.startswith(_STACK) else ("", path)
    key = key.replace("mlp.shared.", "mlp.")
    if key not in LETTERS and key.endswith((".scale", ".bias")):
        name = key.rpartition(".")[0].rpartition(".")[2]
        head = {"q_norm": "HK", "k_norm": "GK"}.get(name, "D")
        found = lead + (head if rank == len(lead) + len(head) else head[-1])
    else:
        found = lead + LETTERS[key]
        if rank == len(found) + 1 and key.startswith("mlp."):
            found = f"{lead}E{LETTERS[key]}"
    if len(found) != rank:
        raise AssertionError(f"{path}: {rank} dimensions, known as {found}")
    return found


@dataclass(frozen=True, kw_only=True)
class Map:
    """One tensor of theirs, or one per layer or expert, and the arrays of ours that it holds.

    theirs: its name; `{L}` and `{E}` stand for the number of a layer and an expert, where they keep a tensor for each.
    ours: dotted paths of our arrays. layouts: for each of them the axes of its part of their tensor, by letter, those
    that are one axis there in brackets: "(HK)D" is [heads * head_width, width]. join: how several parts make a tensor:
    'rows' one below the other along the first axis (behind E, where a tensor holds all experts), 'columns' side by side
    along the last one, 'heads' the rows of each head one after another (GPT-NeoX: q, k and v of head 0, then of head
    1). Every array is in one Map.
    """

    theirs: str
    ours: tuple[str, ...]
    layouts: tuple[str, ...]
    join: Literal["rows", "columns", "heads"] = "rows"

    def __post_init__(self) -> None:
        if not self.ours or len(self.ours) != len(self.layouts):
            raise AssertionError(f"{self.theirs}: {self.ours} with layouts {self.layouts}")


def one(theirs: str, ours: str, layout: str) -> Map:
    """A tensor that holds one array."""
    return Map(theirs=theirs, ours=(ours,), layouts=(layout,))


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a config.json says beside the model: the length it was trained on, ids of special tokens."""

    length: int
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family. `read` takes the fields of a config.json and gives a Model, ConfigError for what we do not have;
    `write` is its inverse; a Model belongs to the family if `read(write(model)) == model` up to its init.

    model_type, architecture: as config.json has them; published: model types of published files that are read as well,
    where we write one of ours. carries: files (in convert/carried/) that an export brings along
    because the library has no such class. buffers: patterns (re) of tensors that published files of it hold and that
    nothing was learned in, such as a mask; they are passed over.
    """

    name: str
    model_type: str
    published: tuple[str, ...] = ()
    architecture: str
    read: Callable[["Fields"], Model]
    write: Callable[[Model, Surroundings], Json]
    maps: Callable[[Model], tuple[Map, ...]]
    carries: tuple[str, ...] = ()
    buffers: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq",)


_MISSING: Any = object()
_LARGEST = 2**53  # whole numbers from here on are not exact as floats
_MOST_LAYERS = 4096  # what a file says is multiplied out, layer by layer, before its tensors are looked at


def _short(value: int | float) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:21]}..."


def is_number(value: Any) -> bool:
    """True for what JSON has as a number, as far as a float holds it exactly or is finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < _LARGEST


class Fields:
    """A config.json that is being read: every field is taken, held to what we can do, or known to be without effect."""

    def __init__(self, raw: Json, where: str) -> None:
        self.raw, self.where = raw, where
        self._seen: set[str] = set()

    def take(self, name: str, kind: type | tuple[type, ...], default: Any = _MISSING) -> Any:
        """The value of a field. ConfigError if it is missing without a default, or of another type."""
        self._seen.add(name)
        value = self.raw.get(name, default)
        if value is _MISSING:
            raise ConfigError(f"{self.where}: {name} is missing")
        if value is default:
            return default
        if isinstance(value, bool) and kind is not bool and not (isinstance(kind, tuple) and bool in kind):
            raise ConfigError(f"{self.where}: {name}={value!r} is not a number")
        if isinstance(value, int | float) and not isinstance(value, bool) and not is_number(value):
            raise ConfigError(f"{self.where}: {name}={_short(value)} is too large for a number of a model")
        if kind is float and isinstance(value, int):
            return float(value)
        if not isinstance(value, kind):
            raise ConfigError(f"{self.where}: {name}={value!r} is not of type {getattr(kind, '__name__', kind)}")
        return value

    def layers(self, name: str) -> int:
        """The number of layers. ConfigError for more than any model has."""
        found: int = self.take(name, int)
        if found > _MOST_LAYERS:
            raise ConfigError(
                f"{self.where}: {name}={_short(found)} is not supported; supported is at most {_MOST_LAYERS}"
            )
        return found

    def only(self, name: str, *supported: Any, default: Any = _MISSING) -> Any:
        """The value of a field that may only have one of these values; a missing one has `default` (the first)."""
        self._seen.add(name)
        value = self.raw.get(name, supported[0] if default is _MISSING else default)
        if not any(value is s or (value == s and type(value) is type(s)) for s in supported):
            able = " or ".join(map(repr, supported))
            raise ConfigError(f"{self.where}: {name}={value!r} is not supported; supported is {able}")
        return value

    def finish(self, harmless: frozenset[str] | set[str] = frozenset()) -> None:
        """ConfigError for the first field that nobody has looked at: it may change what the model computes."""
        unknown = sorted(n for n in self.raw if n not in self._seen | harmless | HARMLESS and not n.startswith("_"))
        if unknown:
            name = unknown[0]
            raise ConfigError(
                f"{self.where}: {name}={self.raw[name]!r} is a field that is not known here"
                f"{suggest(name, sorted(self._seen))}; remove it if it does not change what the model computes"
            )


# Fields of any config.json that do not change what a causal forward pass computes.
HARMLESS = frozenset(
    {
        "architectures",
        "auto_map",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "initializer_range",
        "model_type",
        "max_position_embeddings",
        "output_attentions",
        "output_hidden_states",
        "pretraining_tp",
        "return_dict",
        "name_or_path",
        "id2label",
        "label2id",
        "is_decoder",
        "chunk_size_feed_forward",
        "problem_type",
        "is_encoder_decoder",
        "tokenizer_class",
        "cache_implementation",
        "attn_implementation",
        "output_router_logits",
    }
)
