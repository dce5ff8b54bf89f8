"""Every family against transformers: small random models of awkward shapes, the same numbers from both.

    python tools/parity.py [--family F] [--seed S]

Of each model: our logits are those of transformers (torch, eager attention, float32) within max|difference| /
max|logit| <= 1e-4; the greedy continuation is the same wherever the two best tokens are further apart than that; the
tensors of the published file come back to the bit; and what we write is what transformers computes the same logits
from. Crystal and BTLM, which transformers does not have, are held against a numpy pass written from their published
description (tests/models/families/mup_in_numpy.py), and so are the modelling files that our exports of them carry.
Prints a table; exit code 1 on a miss.
"""

import argparse
import functools
import json
import os
import runpy
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table
from safetensors.numpy import load_file, save_file

from jaxllm.convert.tensors import Array, tensors_of
from jaxllm.models.config import Model
from jaxllm.models.context import Context
from jaxllm.models.count import shapes
from jaxllm.models.decoder import describe
from jaxllm.models.families.registry import FAMILIES, model_of_config
from jaxllm.models.families.table import Family, Json, Surroundings
from jaxllm.models.generate import Sampling, generate
from jaxllm.ops.attention import Scoring, attention
from jaxllm.progress import people

Tree = Any

ROOT = Path(__file__).resolve().parents[1]
CARRIED = ROOT / "jaxllm" / "convert" / "carried"

TOLERANCE = 1e-4
LENGTH, BATCH = 300, 2  # of the sequences whose logits are compared
PROMPTS, CONTINUED = (5, 50), 20  # lengths of the prompts, and how many tokens follow each

# Six heads on two, of a width that is not width / heads; an odd feed-forward width.
_SIZES: Json = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
_UNEVEN = {"hidden_size": 20}  # not a multiple of the heads
_MHA = {"num_key_value_heads": 6, "head_dim": 4}

# In GPT-2's words, as the families say it whose modelling files are ours. Three heads, of which 4 of 10 numbers turn.
_CRYSTAL: Json = {
    "vocab_size": 61,
    "n_embd": 30,
    "n_inner": 37,
    "n_layer": 2,
    "n_head": 3,
    "n_positions": 512,
    "layer_norm_epsilon": 1e-5,
    "activation_function": "swiglu",
    "mup_embeddings_scale": 14.6,
    "mup_output_alpha": 2.22,
    "mup_width_scale": 0.5,
    "mup_scale_qk_dot_by_d": True,
    "position_embedding_type": "rotary",
    "rotary_dim": 4,
}
_BTLM = {n: v for n, v in _CRYSTAL.items() if n != "rotary_dim"} | {"position_embedding_type": "alibi"}


@dataclass(frozen=True)
class Case:
    """A config of transformers, or one that opens with the files we carry. greedy: continue prompts too, which takes a
    few seconds. first: the position of the first token whose logits are compared."""

    family: str
    title: str
    own: Json = field(default_factory=dict)
    greedy: bool = True
    first: int = 0

    @property
    def table(self) -> Family:
        """The family."""
        return next(family for family in FAMILIES if family.name == self.family)

    @property
    def model_type(self) -> str:
        """What transformers calls the family."""
        return self.table.model_type

    @property
    def fields(self) -> Json:
        """What transformers' config class is given."""
        return {
            name: value
            for name, value in ((_SIZES | self.own) if not self.table.carries else self.own).items()
            if value is not _LEFT_OUT
        }


_LEFT_OUT = object()


def _rope(kind: str, **own: Any) -> Json:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1000.0, **own}}


_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
_YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
_FAR = {"head_dim": 64, "max_position_embeddings": 140_000}  # many pairs turn: where a last bit of an angle shows
_NEOX = {"num_attention_heads": 5, "hidden_size": 40, "num_key_value_heads": _LEFT_OUT, "head_dim": _LEFT_OUT}
_MOE = {"num_experts": 5, "num_experts_per_tok": 2}
_NEAR = {"sliding_window": 9, "use_sliding_window": True}

CASES = (
    Case("llama", "GQA 6:2"),
    Case(
        "llama",
        "tied, biases, MHA",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True} | _MHA,
        False,
    ),
    Case("llama", "linear", _rope("linear", factor=3.0), greedy=False),
    Case("llama", "dynamic NTK", _rope("dynamic", factor=4.0) | {"max_position_embeddings": 64}),
    Case("llama", "llama3", _rope("llama3", **_LLAMA3), greedy=False),
    Case("llama", "YaRN", _rope("yarn", **_YARN) | {"max_position_embeddings": 256}, greedy=False),
    Case("llama", "YaRN, said", _rope("yarn", **_YARN, attention_factor=1.3, beta_fast=8.0, truncate=False), False),
    Case("llama", "far", _FAR, greedy=False, first=130_000),
    Case("llama", "far, llama3", _FAR | _rope("llama3", **_LLAMA3), greedy=False, first=130_000),
    Case("llama", "far, YaRN", _FAR | _rope("yarn", **_YARN), greedy=False, first=130_000),
    Case("mistral", "window, MQA", _UNEVEN | {"sliding_window": 9, "num_key_value_heads": 1}),
    Case("mistral", "no window, tied", {"sliding_window": None, "tie_word_embeddings": True}, greedy=False),
    Case("qwen2", "tied", {"tie_word_embeddings": True, "head_dim": _LEFT_OUT}, greedy=False),
    Case("qwen2", "window above", _UNEVEN | _NEAR | {"max_window_layers": 1}),
    Case("qwen3", "biases, tied", _UNEVEN | {"attention_bias": True, "tie_word_embeddings": True}),
    Case("qwen3", "window below", _NEAR | {"layer_types": ["sliding_attention", "full_attention"]}, greedy=False),
    Case("olmo2", "GQA 6:2", _UNEVEN),
    Case("olmo2", "MHA, biases, tied", {"attention_bias": True, "tie_word_embeddings": True} | _MHA, greedy=False),
    Case("gemma2", "caps, window", {"query_pre_attn_scalar": 5, "sliding_window": 9, "attn_logit_softcapping": 2.0}),
    Case(
        "gemma2",
        "no caps, biases, untied, GELU",
        {
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
            "attention_bias": True,
            "hidden_activation": "gelu",
        },
        greedy=False,
    ),
    Case("gemma3", "local theta, window", {"sliding_window": 9, "sliding_window_pattern": 2}),
    Case(
        "gemma3",
        "cap, linear, untied",
        {
            "sliding_window": 9,
            "layer_types": ["full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 11,
            "final_logit_softcapping": 3.0,
            "tie_word_embeddings": False,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        },
        greedy=False,
    ),
    Case("phi3", "half turns, window", {"partial_rotary_factor": 0.5, "sliding_window": 9, "pad_token_id": 0}),
    Case("phi3", "MHA, tied", {"tie_word_embeddings": True, "pad_token_id": 0} | _MHA, greedy=False),
    Case("gpt_neox", "side by side, quarter turns", _NEOX),
    Case(
        "gpt_neox",
        "one after another, tied, no biases, tanh",
        _NEOX
        | {"use_parallel_residual": False, "attention_bias": False, "rotary_pct": 0.5}
        | {"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True},
        greedy=False,
    ),
    Case("crystal", "part of every head turns", _CRYSTAL),
    Case(
        "crystal",
        "all of it, untied, 1/sqrt",
        _CRYSTAL | {"rotary_dim": 10, "tie_word_embeddings": False} | {"mup_scale_qk_dot_by_d": False},
        greedy=False,
    ),
    Case("btlm", "three heads", _BTLM),
    Case("btlm", "eight heads", _BTLM | {"n_head": 8, "n_embd": 32}, greedy=False),
    Case("btlm", "eleven heads, untied", _BTLM | {"n_head": 11, "n_embd": 44, "tie_word_embeddings": False}),
    Case("mixtral", "5 experts, window", _UNEVEN | {"num_local_experts": 5, "sliding_window": 9}),
    Case("olmoe", "GQA 6:2", _MOE | {"head_dim": _LEFT_OUT, "pad_token_id": 0}),
    Case(
        "olmoe",
        "normalized, biases, tied",
        _MOE
        | {"head_dim": _LEFT_OUT, "pad_token_id": 0}
        | {"norm_topk_prob": True, "attention_bias": True, "tie_word_embeddings": True},
        greedy=False,
    ),
    Case("qwen3_moe", "normalized", _UNEVEN | _MOE | {"moe_intermediate_size": 13, "norm_topk_prob": True}),
    Case(
        "qwen3_moe",
        "plain, window, tied",
        _NEAR | _MOE | {"moe_intermediate_size": 13, "tie_word_embeddings": True},
        greedy=False,
    ),
)


@dataclass(frozen=True)
class Result:
    """What came out of one case. error: max|difference| / max|logit|, where we carry modelling files the larger of ours
    and theirs. greedy: tokens equal, and tokens compared: a continuation is compared up to where the two best tokens
    are as close as TOLERANCE. same_bits: the published tensors came back as they were. rebuilt: transformers made the
    same logits, to the bit, of what we wrote."""

    case: Case
    shape: str
    error: float
    greedy: tuple[int, int]
    same_bits: bool
    rebuilt: bool

    @property
    def good(self) -> bool:
        """No miss."""
        return self.error <= TOLERANCE and self.greedy[0] == self.greedy[1] and self.same_bits and self.rebuilt


def compare(case: Case, seed: int, spoil: Callable[[Model], Model] = lambda model: model) -> Result:
    """One case. spoil: what tests change our model with, to see that it is seen."""
    theirs = reference(case, seed)
    dice = np.random.default_rng(seed)
    tokens = dice.integers(0, theirs.config.vocab_size, (BATCH, LENGTH)).astype(np.int32)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        raw = json.loads((Path(folder) / "config.json").read_text())
        published = load_file(Path(folder) / "model.safetensors")
    family, model = model_of_config(raw, "config.json")
    arrays = to_ours(family, model, published)
    back = to_theirs(family, model, arrays)
    model = spoil(model)
    params = tree_of(model, arrays)
    by_theirs = logits_of_theirs(theirs, tokens, case.first)
    expected = _described(case, raw, published, tokens) if family.carries else by_theirs
    found = np.asarray(_logits(model)(params, tokens, case.first))
    prompts = [dice.integers(0, model.vocab_size, n).tolist() for n in PROMPTS] if case.greedy else []
    return Result(
        case=case,
        shape=shape_of(model),
        error=max(float(np.abs(x - expected).max() / np.abs(expected).max()) for x in (found, by_theirs)),
        greedy=_greedy(model, params, theirs, prompts),
        same_bits=equal_bits(published, back),
        rebuilt=_rebuilt(family, model, back, theirs, tokens, case.first, by_theirs),
    )


# ---- theirs ----------------------------------------------------------------------------------------------------------


# Plain torch, which takes any shape.
_PLAIN = {"attn_implementation": "eager", "experts_implementation": "eager"}


def reference(case: Case, seed: int) -> Any:
    """transformers' model with random values, none of which is what it starts as."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    how: Json = _PLAIN | {"dtype": torch.float32}
    if case.table.carries:
        with tempfile.TemporaryDirectory() as folder:
            _, described = model_of_config(case.fields | {"model_type": case.model_type}, case.title)
            _lay_out(Path(folder), case.table, described, Surroundings(length=case.fields["n_positions"]))
            config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=True, **how).eval()
    else:
        config = AutoConfig.for_model(case.model_type, **case.fields)
        model = AutoModelForCausalLM.from_config(config, **how).eval()
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in model.named_parameters():
            if x.ndim == 1:  # scales and biases
                x += torch.rand(x.shape, generator=dice) - 0.5
            else:
                std = 1.0 if "embed" in name else 1.5 / x.shape[-1] ** 0.5
                x.copy_(std * torch.randn(x.shape, generator=dice))
    return model


def logits_of_theirs(theirs: Any, tokens: Array, first: int) -> Array:
    """float32 [B, S, V] of tokens at positions `first` and on."""
    import torch

    positions = torch.arange(first, first + tokens.shape[1]).expand(tokens.shape)
    with torch.no_grad():
        inputs = torch.from_numpy(tokens.astype(np.int64))
        return np.asarray(theirs(inputs, position_ids=positions, use_cache=False).logits)


def _continued(theirs: Any, prompt: list[int]) -> tuple[list[int], Array]:
    """Their greedy continuation and the logits [CONTINUED, V] that it was chosen by."""
    import torch

    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": CONTINUED}
    text = torch.tensor([prompt])
    found = theirs.generate(
        text,
        attention_mask=torch.ones_like(text),
        output_logits=True,
        return_dict_in_generate=True,
        **settings,
    )
    return found.sequences[0, len(prompt) :].tolist(), np.stack([np.asarray(step[0]) for step in found.logits])


def _rebuilt(
    family: Family, model: Model, tensors: Mapping[str, Array], theirs: Any, tokens: Array, first: int, expected: Array
) -> bool:
    """Whether transformers makes the same of the files that we write."""
    import torch
    from transformers import AutoModelForCausalLM

    around = Surroundings(length=theirs.config.max_position_embeddings, pad=theirs.config.pad_token_id)
    how: Json = _PLAIN | {"dtype": torch.float32, "trust_remote_code": bool(family.carries)}
    with tempfile.TemporaryDirectory() as folder:
        _lay_out(Path(folder), family, model, around)
        save_file(dict(tensors), Path(folder) / "model.safetensors", metadata={"format": "pt"})
        again = AutoModelForCausalLM.from_pretrained(folder, **how)
    return np.array_equal(logits_of_theirs(again.eval(), tokens, first), expected)


def _lay_out(folder: Path, family: Family, model: Model, around: Surroundings) -> None:
    """What an export has beside tensors and tokenizer. The only code that is trusted here is what we carry."""
    written = family.write(model, around) | {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        "pad_token_id": around.pad,
    }
    (folder / "config.json").write_text(json.dumps(written))
    for name in family.carries:
        shutil.copy(CARRIED / name, folder)


def _described(case: Case, raw: Json, published: Mapping[str, Array], tokens: Array) -> Array:
    """[B, S, V] in float64, by the published description of the family."""
    passes = runpy.run_path(str(ROOT / "tests" / "models" / "families" / "mup_in_numpy.py"))
    found: Array = passes[case.family](raw, dict(published), tokens)
    return found


# ---- ours ------------------------------------------------------------------------------------------------------------


def to_ours(family: Family, model: Model, theirs: Mapping[str, Array]) -> dict[str, Array]:
    """Our arrays by dotted path. KeyError for a tensor that is missing."""
    arrays = {path: np.full(shape, np.nan, np.float32) for path, shape in shapes(model).items()}
    for tensor in tensors_of(family.maps(model), shapes(model)):
        for part, values in tensor.scatter(theirs[tensor.name]):
            arrays[part.path][part.index] = values
    return arrays


def to_theirs(family: Family, model: Model, ours: Mapping[str, Array]) -> dict[str, Array]:
    """Their tensors by name."""
    tensors = tensors_of(family.maps(model), shapes(model))
    return {t.name: np.ascontiguousarray(t.gather(lambda path, index: ours[path][index])) for t in tensors}


def equal_bits(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    """The same names, shapes and bits."""
    return one.keys() == other.keys() and all(
        x.dtype == other[n].dtype and x.shape == other[n].shape and x.tobytes() == other[n].tobytes()
        for n, x in one.items()
    )


def tree_of(model: Model, arrays: Mapping[str, Array]) -> Tree:
    """Arrays by dotted path as the tree of parameters."""
    return describe(model).tree(lambda leaf: jnp.asarray(arrays[leaf.path]))


@functools.cache
def _logits(model: Model) -> Callable[[Tree, Array, int], jax.Array]:
    """(params, tokens, position of the first) -> float32 [B, S, V], compiled."""
    declared, context = describe(model), Context()

    def attend(q_BSHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scoring: Scoring) -> tuple[jax.Array, None]:
        segments_BS = jnp.zeros(q_BSHK.shape[:2], jnp.int32)
        return attention(q_BSHK, k_BSGK, v_BSGK, segments_BS, kernel=context.attention, scoring=scoring), None

    def run(params: Tree, tokens_BS: jax.Array, first: int) -> jax.Array:
        decoder = declared.bind(params)
        positions_BS = jnp.broadcast_to(first + jnp.arange(tokens_BS.shape[1], dtype=jnp.int32), tokens_BS.shape)
        x_BSD = decoder.run(tokens_BS, positions_BS, lambda _: attend, None, context)[0]
        logits_BSV = jnp.einsum("BSD,VD->BSV", x_BSD, decoder.head_VD())
        cap = model.logit_softcap
        return logits_BSV if cap is None else cap * jnp.tanh(logits_BSV / cap)

    return jax.jit(run)


def _greedy(model: Model, params: Tree, theirs: Any, prompts: list[list[int]]) -> tuple[int, int]:
    """(tokens equal, tokens compared)."""
    if not prompts:
        return 0, 0
    greedy = Sampling(temperature=0)
    ours = generate(model, params, prompts, max_tokens=CONTINUED, context=Context(), sampling=greedy)
    equal = compared = 0
    for prompt, found in zip(prompts, ours, strict=True):
        expected, logits_SV = _continued(theirs, prompt)
        for token, wanted, logits_V in zip(found, expected, logits_SV, strict=True):
            second, first = np.partition(logits_V, -2)[-2:]
            if token != wanted and first - second <= TOLERANCE * np.abs(logits_V).max():
                break  # two texts from here on
            compared += 1
            equal += token == wanted
    return equal, compared


def shape_of(model: Model) -> str:
    """Layers, width, heads and feed-forward in a few letters."""
    part = model.attention
    ffn = getattr(model.ffn, "width", None) or f"{model.ffn.experts}x{model.ffn.expert.width}"  # type: ignore[union-attr]
    tied = ", tied" if model.tied_embeddings else ""
    return f"{model.layers}x{model.width}, {part.heads}:{part.kv_heads}x{part.head_width}, ffn {ffn}{tied}"


# ---- the table -------------------------------------------------------------------------------------------------------


def main() -> int:
    known = list(dict.fromkeys(case.family for case in CASES))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--family", choices=known)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    modules = tempfile.TemporaryDirectory()  # where transformers copies modelling files to; it reads this once
    os.environ.setdefault("HF_MODULES_CACHE", modules.name)
    table = Table("family", "what", "shape", box=None, pad_edge=False)
    for name in ("max relative logit error", "greedy tokens equal", "round trip bits", "rebuilt"):
        table.add_column(name, justify="right", no_wrap=True)
    results = []
    for case in CASES:
        if args.family in (None, case.family):
            results.append(result := compare(case, args.seed))
            table.add_row(*_row(result), style=None if result.good else "bold red")
    console = people()
    console.print(table)
    console.print(_summary(results, args.seed))
    return int(not all(result.good for result in results))


def _summary(results: Sequence[Result], seed: int) -> str:
    equal, compared = (sum(counts) for counts in zip(*(r.greedy for r in results), strict=True))
    families, missed = len({r.case.family for r in results}), sum(not r.good for r in results)
    worst = max(r.error for r in results)
    return (
        f"{families} families, {len(results)} shapes, seed {seed}: worst relative logit error {worst:.1e} (at most "
        f"{TOLERANCE:.0e}), {equal} of {compared} greedy tokens equal, {missed} missed"
    )


def _row(result: Result) -> tuple[str, ...]:
    equal, compared = result.greedy
    return (
        result.case.family,
        result.case.title,
        result.shape,
        f"{result.error:.1e}",
        f"{equal} of {compared}" if result.case.greedy else "-",
        "equal" if result.same_bits else "DIFFERENT",
        "equal" if result.rebuilt else "DIFFERENT",
    )


if __name__ == "__main__":
    sys.exit(main())
