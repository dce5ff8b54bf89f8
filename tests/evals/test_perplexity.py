"""Held-out scores: token-weighted, whatever the batch size; bytes counted by the tokenizer's table."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from configs.debug import debug
from jaxllm.assembly import Assembly, assemble
from jaxllm.data.batch import assemble as arrays_of
from jaxllm.evals.perplexity import HeldOut
from jaxllm.evals.unigram import unigram_entropy
from jaxllm.parallel.config import Mesh
from jaxllm.run import RunConfig
from tests.data.fake_store import FakeReader, FakeStore

VOCAB = 64


@pytest.fixture(scope="module")
def run() -> RunConfig:
    base = debug()
    model = dataclasses.replace(base.model, vocab_size=VOCAB, layers=1)
    return dataclasses.replace(base, model=model, data=dataclasses.replace(base.data, seq_len=16), mesh=Mesh(dp=1))


@pytest.fixture(scope="module")
def parts(run: RunConfig) -> Assembly:
    return assemble(run)
