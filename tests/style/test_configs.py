"""Every function of configs/ builds a value that validates, is always the same, survives JSON and shapes its model."""

import importlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxllm.core.config import decode, encode, fingerprint
from jaxllm.core.errors import ConfigError
from jaxllm.data.config import DataRecipe, TrainBpe
from jaxllm.run import RunConfig, decode_run
from tests.style import graph

ROOT = Path(__file__).resolve().parents[2]


def public_functions() -> dict[str, Callable[[], Any]]:
    """What `jaxllm train configs/x.py:NAME` can name, as "configs.x:NAME"."""
    found: dict[str, Callable[[], Any]] = {}
    for name in graph.read(ROOT, "configs").modules:
        module = importlib.import_module(name)
        for key, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__ == name and not key.startswith("_"):
                found[f"{name}:{key}"] = value
    return found


FUNCTIONS = public_functions()
RUNS = {name: f for name, f in FUNCTIONS.items() if inspect.signature(f).return_annotation is RunConfig}
RECIPES = {name: f for name, f in FUNCTIONS.items() if inspect.signature(f).return_annotation is DataRecipe}


def named(functions: dict[str, Callable[[], Any]]) -> Any:
    return pytest.mark.parametrize("function", functions.values(), ids=list(functions))


def test_the_reference_configs_are_found() -> None:
    assert {"configs.quickstart:quickstart", "configs.debug:debug"} <= set(RUNS)
    assert "configs.data.python_stdlib:python_stdlib" in RECIPES


@named(FUNCTIONS)
def test_takes_no_argument_and_says_what_it_returns(function: Callable[[], Any]) -> None:
    """Helpers of a config start with an underscore, so that whatever can be named can be trained."""
    signature = inspect.signature(function)
    assert not signature.parameters
    assert signature.return_annotation in (RunConfig, DataRecipe)
    assert type(function()) is signature.return_annotation


@named(FUNCTIONS)
def test_is_the_same_each_time_and_after_json(function: Callable[[], Any]) -> None:
    value = function()
    assert fingerprint(function()) == fingerprint(value)
    raw = json.loads(json.dumps(encode(value)))
    again = decode_run(raw) if isinstance(value, RunConfig) else decode(type(value), raw)
    assert again == value
    assert fingerprint(again) == fingerprint(value)


@named(RUNS)
def test_shapes_its_model(function: Callable[[], RunConfig]) -> None:
    """Nothing is allocated, so this holds for 65 billion parameters too."""
    from jaxllm.models import count
    from jaxllm.models.decoder import describe

    model = function().model
    declared = {leaf.path: leaf.shape for leaf in describe(model).leaves}
    assert declared == count.shapes(model)


@named(RUNS)
def test_data_fits_the_model(function: Callable[[], RunConfig]) -> None:
    run = function()
    if isinstance(run.data.store, DataRecipe):
        sources = {source.name for source in run.data.store.sources}
        assert {share.source for stage in run.data.stages for share in stage.mixture} <= sources
        if isinstance(run.data.store.tokenizer, TrainBpe):
            assert run.data.store.tokenizer.vocab_size == run.model.vocab_size


@named(RUNS)
def test_header_holds_the_command(function: Callable[[], RunConfig]) -> None:
    """A config is a record of a run: its file says how to run it."""
    module = inspect.getmodule(function)
    assert module is not None
    path = Path(inspect.getfile(function)).relative_to(ROOT).as_posix()
    assert f"jaxllm train {path}" in (module.__doc__ or "")


@named(RUNS)
def test_a_broken_config_is_refused(function: Callable[[], RunConfig]) -> None:
    """The checks above can fail: one field off, and each says so."""
    raw = encode(function())
    assert fingerprint({**raw, "seed": raw["seed"] + 1}) != fingerprint(raw)
    with pytest.raises(ConfigError, match="run has no field 'sed'"):
        decode_run({**raw, "sed": 1})
