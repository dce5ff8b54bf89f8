"""Continue a prompt: one pass over the prompt fills a key-value cache, then one token at a time extends it."""

import functools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.core.errors import ConfigError
from jaxllm.models.config import Dropless, Model, Moe
from jaxllm.models.context import Context
from jaxllm.models.decoder import Decoder, Scored, describe
from jaxllm.models.randomness import key_for
from jaxllm.ops.attention import Scoring, attend

Tree = Any

_STRIDE = 64  # prompts and caches are rounded up to it, so that few shapes are compiled


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    temperature: logits are divided by it; 0 takes the likeliest token. top_k: only the k likeliest tokens (and those as
    likely as the k-th). top_p: only the likeliest tokens that together reach this probability, after top_k.
    seed: token i of every continuation is drawn with key_for(seed, "sample", i), so that a continuation depends on
    its own prompt alone.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError(f"temperature={self.temperature} is not negative; 0 takes the likeliest token")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k={self.top_k} is at least 1; leave it out for all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} lies above 0 and up to 1; leave it out for all tokens")


class Cache(NamedTuple):
    """Keys (turned) and values of all positions so far: [L, B, T, G, K] each, T allocated once."""

    k_LBTGK: jax.Array
    v_LBTGK: jax.Array


def generate(
    model: Model,
    params: Tree,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    context: Context,
    sampling: Sampling = Sampling(),
    stop: int | Collection[int] | None = None,
) -> list[list[int]]:
    """The continuation of each prompt, without the prompt: at most `max_tokens` ids, ended before one of `stop`.

    Prompts are continued one after another; the programs are compiled once for all of them. Of `context` only the
    dtype and the unrolling matter, and a `shard` must accept batches of one. Params may be sharded. Experts of limited
    capacity serve every token here. ConfigError for an empty prompt or an id outside the vocabulary.
    """
    stops = {stop} if stop is None or isinstance(stop, int) else set(stop)
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ConfigError(f"prompt {i} has no tokens; begin with the end-of-text token for a text from nothing")
        if not all(0 <= token < model.vocab_size for token in prompt):
            raise ConfigError(
                f"prompt {i} has token ids outside 0..{model.vocab_size - 1}; encode it with the model's own tokenizer"
            )
    longest = max((len(prompt) for prompt in prompts), default=0)
    run = _Run(model, context, sampling, prompt_size=_round_up(longest), size=_round_up(longest + max_tokens))
    found = []
    for prompt in prompts:
        tokens: list[int] = []
        for token in run.tokens(params, prompt, max_tokens):
            if token in stops:
                break
            tokens.append(token)
        found.append(tokens)
    return found


class _Run:
    """The two compiled programs (whole prompt, one token) for one size of prompt and cache."""

    def __init__(self, model: Model, context: Context, sampling: Sampling, *, prompt_size: int, size: int) -> None:
        self._sampling, self._prompt_size = sampling, prompt_size
        declared = describe(_without_capacity(model))
        shape = (model.layers, 1, size, model.attention.kv_heads, model.attention.head_width)

        def step(
            params: Tree, cache: Cache, tokens_BS: jax.Array, start: jax.Array, last: jax.Array, key: jax.Array
        ) -> tuple[jax.Array, Cache]:
            logits_V, cache = extend(declared.bind(params), cache, tokens_BS, start, last, context)
            return choose_token(logits_V, key, sampling), cache

        self._step = jax.jit(step, donate_argnums=1)
        self._empty = functools.partial(jnp.zeros, shape, jnp.dtype(context.dtype))

    def tokens(self, params: Tree, prompt: Sequence[int], max_tokens: int) -> Iterator[int]:
        cache = Cache(self._empty(), self._empty())
        padded = np.zeros((1, self._prompt_size), np.int32)
        padded[0, : len(prompt)] = prompt
        start, last = 0, len(prompt) - 1
        for i in range(max_tokens):
            key = key_for(self._sampling.seed, "sample", i)
            drawn, cache = self._step(params, cache, padded, start, last, key)
            token = int(drawn)
            yield token
            # What the padding of the prompt left in the cache is overwritten before any query can see it.
            start, last = start + last + 1, 0
            padded = np.full((1, 1), token, np.int32)


def _without_capacity(model: Model) -> Model:
    """Experts serve every token: how many came before it says nothing about the next one."""
    return replace(model, ffn=replace(model.ffn, dispatch=Dropless())) if isinstance(model.ffn, Moe) else model


def extend(
    model: Decoder, cache: Cache, tokens_BS: jax.Array, start: jax.Array, last: jax.Array, context: Context
) -> tuple[jax.Array, Cache]:
    """(float32 logits [V] after `tokens_BS[0, last]`, the cache with these tokens at start .. start + S - 1).

    tokens_BS: int32, one sequence; start, last: int32 scalars.
    """
    S, T = tokens_BS.shape[1], cache.k_LBTGK.shape[2]
    index_BS = start + jnp.arange(S, dtype=jnp.int32)[None]
    distance_ST = index_BS[0, :, None] - jnp.arange(T, dtype=jnp.int32)
    # Padding sits where the last token does: how long a text is may matter (DynamicNtk), how far it is padded not.
    positions_BS = jnp.minimum(index_BS, start + last)

    def attend_to(own: Cache, _: None) -> Scored[Cache]:
        def attend_cached(
            q_BSHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scoring: Scoring
        ) -> tuple[jax.Array, Cache]:
            k_BTGK = jax.lax.dynamic_update_slice_in_dim(own.k_LBTGK, k_BSGK, start, axis=1)
            v_BTGK = jax.lax.dynamic_update_slice_in_dim(own.v_LBTGK, v_BSGK, start, axis=1)
            near_ST = distance_ST >= 0
            if scoring.window is not None:
                near_ST &= distance_ST < scoring.window
            o_BSHK = attend(q_BSHK, k_BTGK, v_BTGK, near_ST[None], distance_ST, scoring)
            return o_BSHK, Cache(k_BSGK, v_BSGK)

        return attend_cached

    x_BSD, new, _ = model.run(tokens_BS, positions_BS, attend_to, cache, None, context)
    # Layers hand back only what is new, so that the big arrays are written once and in place.
    k_LBTGK = jax.lax.dynamic_update_slice_in_dim(cache.k_LBTGK, new.k_LBTGK, start, axis=2)
    v_LBTGK = jax.lax.dynamic_update_slice_in_dim(cache.v_LBTGK, new.v_LBTGK, start, axis=2)
    x_D = jax.lax.dynamic_index_in_dim(x_BSD[0], last, axis=0, keepdims=False)
    head_VD = context.cast(model.head_VD())
    logits_V = jnp.einsum("D,VD->V", x_D, head_VD, preferred_element_type=jnp.float32)
    softcap = model.model.logit_softcap
    if softcap is not None:
        logits_V = softcap * jnp.tanh(logits_V / softcap)
    return logits_V, Cache(k_LBTGK, v_LBTGK)


def choose_token(logits_V: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """The next token, int32, from float32 logits."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_V).astype(jnp.int32)
    logits_V = logits_V / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits_V.size:
        least = jax.lax.top_k(logits_V, sampling.top_k)[0][-1]
        logits_V = jnp.where(logits_V < least, -jnp.inf, logits_V)
    if sampling.top_p is not None:
        sorted_V = jnp.sort(logits_V, descending=True)
        share_V = jax.nn.softmax(sorted_V)
        # A token stays if those before it do not yet reach top_p; the first always does.
        inside_V = jnp.cumsum(share_V) - share_V < sampling.top_p
        least = jnp.where(inside_V, sorted_V, jnp.inf).min()
        logits_V = jnp.where(logits_V < least, -jnp.inf, logits_V)
    with jax.threefry_partitionable(True):
        return jax.random.categorical(key, logits_V).astype(jnp.int32)


def _round_up(n: int) -> int:
    return max(1, -(-n // _STRIDE)) * _STRIDE
