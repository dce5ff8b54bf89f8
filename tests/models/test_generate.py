"""Sampling with a cache: the same as running the whole text anew for every token, and drawn as asked."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.core.errors import ConfigError
from jaxllm.models import generate as ours
from jaxllm.models.config import Capacity, Dropless, DynamicNtk, Model, Moe, NoPosition, Rope, SwiGlu
from jaxllm.models.context import Context
from jaxllm.models.generate import Sampling, choose_token, generate
from jaxllm.models.randomness import key_for
from tests.models.small import MODEL, hidden, parameters

Array = np.ndarray[Any, Any]

GREEDY = Sampling(temperature=0)
PROMPTS = [[5, 9, 2, 33, 7], [60], list(range(40, 58))]
LENGTH = 32  # of the texts that are run anew


def logits_of(model: Model, text: list[int]) -> Array:
    """Of the token after `text`, by one pass over the whole text."""
    params = parameters(model)
    inputs = np.zeros((1, LENGTH), np.int32)
    inputs[0, : len(text)] = text
    x_BSD = hidden(model, params, inputs, np.zeros_like(inputs), np.arange(LENGTH, dtype=np.int32)[None], Context())
    head_VD = params["embed"]["table"] if model.tied_embeddings else params["head"]["kernel"].T
    return x_BSD[0, len(text) - 1] @ np.asarray(head_VD).T


def greedily(model: Model, prompt: list[int], count: int) -> list[int]:
    text = list(prompt)
    for _ in range(count):
        text.append(int(logits_of(model, text).argmax()))
    return text[len(prompt) :]


def continued(model: Model = MODEL, prompts: list[list[int]] = PROMPTS, **how: Any) -> list[list[int]]:
    settings: dict[str, Any] = {"max_tokens": 12, "context": Context(), "sampling": GREEDY, **how}
    return generate(model, parameters(model), prompts, **settings)


@pytest.mark.parametrize(
    "change", [{}, {"tied_embeddings": True}, {"position": NoPosition()}], ids=["rope", "tied", "no_position"]
)
def test_greedy_is_the_likeliest_token_of_the_whole_text(change: dict[str, Any]) -> None:
    model = dataclasses.replace(MODEL, **change)
    assert continued(model) == [greedily(model, prompt, 12) for prompt in PROMPTS]


def test_how_far_a_prompt_is_padded_is_no_position() -> None:
    # 32 positions at most, in caches of 64: what is stretched from the 41st position on is as if it were not.
    stretched = Rope(theta=100.0, scaling=DynamicNtk(factor=4.0, original_length=40))
    assert continued(dataclasses.replace(MODEL, position=stretched)) == continued()


EXPERTS = Moe(experts=4, top_k=2, expert=SwiGlu(width=12), dispatch=Capacity(factor=0.5))


def test_experts_of_limited_capacity_serve_every_token() -> None:
    """Whether a token was given or drawn, and whatever came before it."""
    limited = dataclasses.replace(MODEL, layers=2, ffn=EXPERTS)
    dropless = dataclasses.replace(limited, ffn=dataclasses.replace(EXPERTS, dispatch=Dropless()))
    made = continued(limited, max_tokens=8)
    assert made == [greedily(dropless, prompt, 8) for prompt in PROMPTS]
    assert made != [greedily(limited, prompt, 8) for prompt in PROMPTS]


@pytest.mark.parametrize("broken", ["late", "unwritten"])
def test_a_broken_cache_would_be_seen(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = ours.extend

    def extend(model: Any, cache: Any, tokens: Any, start: Any, last: Any, context: Any) -> Any:
        logits_V, new = sound(model, cache, tokens, start + (broken == "late") * (tokens.shape[1] == 1), last, context)
        return logits_V, cache if broken == "unwritten" and tokens.shape[1] == 1 else new

    monkeypatch.setattr(ours, "extend", extend)
    assert continued() != [greedily(MODEL, prompt, 12) for prompt in PROMPTS]


def test_prompts_longer_than_a_stride_and_caches_that_end_on_one() -> None:
    prompt = [int(t) for t in np.random.default_rng(0).integers(0, MODEL.vocab_size, 70)]
    long, short = continued(prompts=[prompt, prompt[:3]], max_tokens=58)
    assert len(long) == len(short) == 58
    # A text goes on as it would have gone on if what was sampled had been given.
    assert continued(prompts=[prompt + long[:20]], max_tokens=38) == [long[20:]]
    assert continued(prompts=[prompt[:3]], max_tokens=58) == [short]


def test_stops_before_the_last_token_of_a_text() -> None:
    whole = continued()
    stop = whole[0][4]
    cut = continued(stop=stop)
    for one, all_of_it in zip(cut, whole, strict=True):
        expected = all_of_it[: all_of_it.index(stop)] if stop in all_of_it else all_of_it
        assert one == expected
    assert continued(max_tokens=0) == [[], [], []]
    assert continued(prompts=[]) == []


def test_a_continuation_depends_on_seed_and_prompt_alone() -> None:
    free = Sampling(temperature=1.0, seed=4)
    together = continued(sampling=free)
    assert together == continued(sampling=free)
    assert [continued(prompts=[prompt], sampling=free)[0] for prompt in PROMPTS] == together
    assert continued(sampling=dataclasses.replace(free, seed=5)) != together
    assert len({tuple(tokens) for tokens in together}) == 3


def test_bfloat16_runs() -> None:
    assert all(0 <= t < MODEL.vocab_size for t in continued(prompts=[[1]], context=Context(dtype="bfloat16"))[0])


@pytest.mark.parametrize(
    ("prompts", "words"),
    [([[1], []], "prompt 1 has no tokens"), ([[61]], r"prompt 0 .* outside 0\.\.60"), ([[-1]], "prompt 0")],
)
def test_impossible_prompts_are_refused(prompts: list[list[int]], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        continued(prompts=prompts)


@pytest.mark.parametrize(
    "fields", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}], ids=lambda f: next(iter(f))
)
def test_impossible_samplings_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Sampling(**fields)


# ---- the choice of one token -----------------------------------------------------------------------------------------

LOGITS: Array = np.asarray([1.0, -2.0, 0.5, 3.0, 0.0, 2.0], np.float32)
DRAWS = 4000


@functools.cache
def shares(sampling: Sampling) -> Array:
    """How often each token is drawn."""
    keys = jax.vmap(lambda i: jax.random.fold_in(key_for(0, "test"), i))(jnp.arange(DRAWS))
    tokens = jax.jit(jax.vmap(lambda key: choose_token(jnp.asarray(LOGITS), key, sampling)))(keys)
    return np.bincount(np.asarray(tokens), minlength=len(LOGITS)) / DRAWS


def softmax(logits: Array) -> Array:
    e = np.exp(logits - logits.max())
    return np.asarray(e / e.sum())


def kept(*tokens: int, temperature: float = 1.0) -> Array:
    allowed = np.isin(np.arange(len(LOGITS)), tokens)
    return softmax(np.where(allowed, LOGITS / temperature, -np.inf))


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), softmax(LOGITS)),
        (Sampling(temperature=0.5), softmax(LOGITS / 0.5)),
        (Sampling(top_k=2), kept(3, 5)),
        (Sampling(top_k=100), softmax(LOGITS)),
        (Sampling(top_k=1), kept(3)),
        # softmax: 0.61 for token 3, 0.22 for 5, 0.08 for 0
        (Sampling(top_p=0.6), kept(3)),
        (Sampling(top_p=0.62), kept(3, 5)),
        (Sampling(top_p=0.9), kept(3, 5, 0)),
        (Sampling(top_p=1.0), softmax(LOGITS)),
        (Sampling(top_p=1e-6), kept(3)),
        (Sampling(top_k=3, top_p=0.9), kept(3, 5)),  # of the three, the two likeliest hold 0.92
        (Sampling(temperature=2.0, top_k=3), kept(3, 5, 0, temperature=2.0)),
    ],
    ids=str,
)
def test_tokens_are_drawn_as_often_as_asked(sampling: Sampling, expected: Array) -> None:
    seen = shares(sampling)
    assert (seen[expected == 0] == 0).all()
    np.testing.assert_allclose(seen, expected, atol=4 * np.sqrt(0.25 / DRAWS))


def test_temperature_zero_takes_the_likeliest() -> None:
    assert int(choose_token(jnp.asarray(LOGITS), key_for(0, "x"), GREEDY)) == 3


def test_another_distribution_would_be_seen() -> None:
    assert np.abs(shares(Sampling()) - softmax(LOGITS / 0.8)).max() > 4 * np.sqrt(0.25 / DRAWS)
