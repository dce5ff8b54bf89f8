"""The config codec: what is accepted, what every refusal says, and that the saved form never moves."""

import copy
import dataclasses
import itertools
import json
import pickle
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from jaxllm.core.config import canonical, config, decode, differences, encode, fingerprint, override, suggest, variant
from jaxllm.core.errors import ConfigError


@variant
class Rope:
    theta: float = 10_000.0


@variant
class Alibi:
    max_bias: float = 8.0
    slopes: tuple[float, ...] = ()


Position = Annotated[Rope | Alibi, Field(discriminator="kind")]


@config
class Layer:
    width: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.width % 2:
            raise ValueError(f"width={self.width} is odd; use an even one")


@config
class Optimizer:
    lr: float = 1e-3
    clip: float | None = 1.0


@config
class Run:
    name: str
    seed: int = 0
    on: bool = False
    dtype: Literal["bf16", "f32"] = "f32"
    position: Position = Rope()
    second: Position | None = None
    layers: tuple[Layer, ...] = (Layer(width=2),)
    extra: Layer | None = None
    optimizer: Optimizer = Optimizer()


RUN = Run(name="x")

finite = st.floats(allow_nan=False, allow_infinity=False)
positions = st.one_of(
    st.builds(Rope, theta=finite), st.builds(Alibi, max_bias=finite, slopes=st.lists(finite, max_size=3).map(tuple))
)
layers = st.builds(Layer, width=st.integers(-(10**20), 10**20).map(lambda n: 2 * n), dropout=finite)
runs = st.builds(
    Run,
    name=st.text(st.characters(exclude_categories=["Cs"])),
    seed=st.integers(),
    on=st.booleans(),
    dtype=st.sampled_from(["bf16", "f32"]),
    position=positions,
    second=st.none() | positions,
    layers=st.lists(layers, max_size=3).map(tuple),
    extra=st.none() | layers,
    optimizer=st.builds(Optimizer, lr=finite, clip=st.none() | finite),
)


# ---- values ----------------------------------------------------------------------------------------------------------


@given(runs)
def test_saved_and_read_again_it_is_the_same(run: Run) -> None:
    text = json.dumps(encode(run))
    again = decode(Run, json.loads(text))
    assert again == run
    assert json.dumps(encode(again)) == text
    assert fingerprint(again) == fingerprint(run)
    assert hash(again) == hash(run)


def test_a_config_is_frozen_and_copies_by_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RUN.seed = 1  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(RUN)) == copy.deepcopy(RUN) == RUN
    assert dataclasses.replace(RUN, seed=3).seed == 3
    assert dataclasses.replace(Rope(), theta=1.0) == Rope(theta=1.0)


def test_an_int_given_for_a_float_is_a_float() -> None:
    """Else the saved form would depend on whether a config was built in Python or read from a file."""
    assert encode(Optimizer(lr=1)) == encode(decode(Optimizer, {"lr": 1})) == encode(Optimizer(lr=1.0))
    assert type(Optimizer(lr=1).lr) is float


def test_variants_carry_their_kind_and_configs_do_not() -> None:
    assert encode(Alibi()) == {"kind": "Alibi", "max_bias": 8.0, "slopes": []}
    assert encode(Layer(width=2)) == {"width": 2, "dropout": 0.0}
    assert decode(Run, {"name": "x", "position": {"kind": "Alibi"}}).position == Alibi()
    # Two kinds with equal fields are different values.
    assert fingerprint(Rope()) != fingerprint({"kind": "Alibi", "theta": 10_000.0})


@pytest.mark.parametrize("value", [{1, 2}, b"x", object(), 1j, print])
def test_only_values_are_encoded(value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{type(value).__name__} is not a config value; use str, int"):
        encode(value)


def test_a_type_must_stand_above_its_use() -> None:
    with pytest.raises(TypeError, match=r"^Early: define the types of its fields above it$"):

        @config
        class Early:
            later: "Later"  # type: ignore[name-defined]  # noqa: F821


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "run needs a value for 'name'"),
        ([], "run=[]: input should be an object"),
        (None, "run=null: input should be an object"),
        ({"name": "x", "sead": 1}, "run has no field 'sead'; did you mean 'seed'?"),
        ({"nmae": "x"}, "run has no field 'nmae'; did you mean 'name'?"),
        ({"name": "x", "optimizer": {"q": 1}}, "run.optimizer has no field 'q'; known: clip, lr"),
        (
            {"name": "x", "layers": [{"width": 2}, {"wdth": 2}]},
            "run.layers.1 has no field 'wdth'; did you mean 'width'?",
        ),
        ({"name": "x", "layers": [{"width": 3}]}, "run.layers.0: width=3 is odd; use an even one"),
        ({"name": "x", "layers": [1]}, "run.layers.0=1: input should be an object"),
        ({"name": "x", "layers": [{}]}, "run.layers.0 needs a value for 'width'"),
        ({"name": "x", "position": {"kind": "Alibo"}}, "run.position.kind='Alibo' is unknown; did you mean 'Alibi'?"),
        ({"name": "x", "second": {"kind": "No"}}, "run.second.kind='No' is unknown; known: Alibi, Rope"),
        ({"name": "x", "position": {"theta": 1.0}}, "run.position needs a 'kind', one of Alibi, Rope"),
        ({"name": "x", "position": {"kind": "Rope", "slopes": []}}, "run.position has no field 'slopes'; known: theta"),
        (
            {"name": "x", "position": {"kind": "Alibi", "slopes": [1, "y"]}},
            'run.position.slopes.1="y": input should be a valid number',
        ),
        ({"name": "x", "dtype": "fp8"}, "run.dtype=\"fp8\": input should be 'bf16' or 'f32'"),
        ({"name": "x", "seed": 1.5}, "run.seed=1.5: input should be a valid integer"),
        ({"name": "x", "seed": 1.0}, "run.seed=1.0: input should be a valid integer"),
        ({"name": "x", "seed": "1"}, 'run.seed="1": input should be a valid integer'),
        ({"name": "x", "seed": True}, "run.seed=true: input should be a valid integer"),
        ({"name": "x", "on": 1}, "run.on=1: input should be a valid boolean"),
        ({"name": "x", "on": "yes"}, 'run.on="yes": input should be a valid boolean'),
        ({"name": "x", "optimizer": {"lr": True}}, "run.optimizer.lr=true: input should be a valid number"),
        ({"name": "x", "optimizer": {"lr": None}}, "run.optimizer.lr=null: input should be a valid number"),
        ({"name": "x", "optimizer": {"lr": float("nan")}}, "run.optimizer.lr=NaN: input should be a finite number"),
        (
            {"name": "x", "optimizer": {"clip": float("inf")}},
            "run.optimizer.clip=Infinity: input should be a finite number",
        ),
        (
            {"name": ["long"] * 99},
            'run.name=["long", "long", "long", "long", "long", ',
        ),
    ],
)
def test_what_a_refusal_says(raw: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        decode(Run, raw)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Run(name="x", sead=1), "Run has no field 'sead'; did you mean 'seed'?"),  # type: ignore[call-arg]
        (lambda: Run(), "Run needs a value for 'name'"),  # type: ignore[call-arg]
        (lambda: Run("x"), "Run: fields are given by name, as in Run(field=value)"),  # type: ignore[call-arg]
        (lambda: Run(name=3), "Run.name=3: input should be a valid string"),  # type: ignore[arg-type]
        (lambda: Layer(width=3), "Layer: width=3 is odd; use an even one"),
        (lambda: Alibi(max_bias="8"), 'Alibi.max_bias="8": input should be a valid number'),  # type: ignore[arg-type]
        (lambda: Run(name="x", position=Layer(width=2)), "Run.position"),  # type: ignore[arg-type]
        (
            lambda: Run(name="x", layers=[Layer(width=2)]),  # type: ignore[arg-type]
            'Run.layers=["Layer(width=2, dropout=0.0)"]: input should be a valid tuple',
        ),
        (
            lambda: dataclasses.replace(RUN, seed="1"),  # type: ignore[arg-type]
            'Run.seed="1": input should be a valid integer',
        ),
    ],
)
def test_building_one_in_python_says_the_same(build: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_suggestions() -> None:
    assert suggest("modle", ["model", "data"]) == "; did you mean 'model'?"
    assert suggest("zzz", ["model", "data"]) == "; known: data, model"


# ---- overrides -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["seed=3"], Run(name="x", seed=3)),
        (["seed=1_000"], Run(name="x", seed=1000)),
        (["on=true", "dtype=bf16"], Run(name="x", on=True, dtype="bf16")),
        (["on=True"], Run(name="x", on=True)),
        (["name=a=b c"], Run(name="a=b c")),
        (["name="], Run(name="")),
        (['name="3"'], Run(name="3")),
        (["name=[1"], Run(name="[1")),
        (["optimizer.lr=3e-4"], Run(name="x", optimizer=Optimizer(lr=3e-4))),
        (["optimizer.lr=1"], Run(name="x", optimizer=Optimizer(lr=1.0))),
        (["optimizer.clip=null"], Run(name="x", optimizer=Optimizer(clip=None))),
        (["optimizer.clip=None"], Run(name="x", optimizer=Optimizer(clip=None))),
        (["optimizer={}"], RUN),
        (["layers.0.width=4"], Run(name="x", layers=(Layer(width=4),))),
        (["layers=[]"], Run(name="x", layers=())),
        (['layers=({"width": 4}, {"width": 6})'], Run(name="x", layers=(Layer(width=4), Layer(width=6)))),
        (["position.theta=5"], Run(name="x", position=Rope(theta=5.0))),
        (["position.kind=Rope", "position.theta=5"], Run(name="x", position=Rope(theta=5.0))),
        (["position.kind=Alibi"], Run(name="x", position=Alibi())),
        (["position.kind=Alibi", "position.max_bias=2"], Run(name="x", position=Alibi(max_bias=2.0))),
        (['position={"kind":"Alibi","max_bias":2}'], Run(name="x", position=Alibi(max_bias=2.0))),
        (["position={'kind': 'Alibi', 'slopes': (1, 2)}"], Run(name="x", position=Alibi(slopes=(1.0, 2.0)))),
        (["extra.width=4"], Run(name="x", extra=Layer(width=4))),
        (['extra={"width":4}', "extra.dropout=0.5"], Run(name="x", extra=Layer(width=4, dropout=0.5))),
        (["second.kind=Alibi"], Run(name="x", second=Alibi())),
        # Only the result is judged: 3 would be refused.
        (['layers=[{"width":3}]', "layers.0.width=8"], Run(name="x", layers=(Layer(width=8),))),
        (["seed=1", "seed=1"], Run(name="x", seed=1)),
    ],
)
def test_overrides_in_any_order(texts: list[str], expected: Run) -> None:
    for order in itertools.permutations(texts):
        assert override(RUN, order) == expected
    assert Run(name="x") == RUN


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["seed"], "'seed' is not an assignment; write field.path=value"),
        (["=3"], "'=3' is not an assignment; write field.path=value"),
        (["optimizer.learning_rate=1"], "run.optimizer has no field 'learning_rate'; known: clip, lr"),
        (["optimizr.lr=1"], "run has no field 'optimizr'; did you mean 'optimizer'?"),
        (["optimizer..lr=1"], "run.optimizer has no field ''; known: clip, lr"),
        (["optimizer.lr=fast"], 'run.optimizer.lr="fast": input should be a valid number'),
        (["optimizer.lr=1e999"], "run.optimizer.lr=Infinity: input should be a finite number"),
        (["optimizer=3"], "run.optimizer=3: input should be an object"),
        (["optimizer.lr.x=3"], "run.optimizer.lr is 0.001 and has no field 'x'"),
        (["name=3"], "run.name=3: input should be a valid string"),
        (["seed="], 'run.seed="": input should be a valid integer'),
        (["layers.1.width=4"], "run.layers has 1 items, counted from 0; '1' is none of them"),
        (["layers.-1.width=4"], "run.layers has 1 items, counted from 0; '-1' is none of them"),
        (["layers.first.width=4"], "run.layers has 1 items, counted from 0; 'first' is none of them"),
        (["layers.0.width=3"], "run.layers.0: width=3 is odd; use an even one"),
        (["layers.0.kind=Layer"], "run.layers.0 has no field 'kind'; known: dropout, width"),
        (["position.kind=Alibo"], "run.position.kind='Alibo' is unknown; did you mean 'Alibi'?"),
        (["position.kind=Alibi", "position.theta=2"], "run.position has no field 'theta'; known: max_bias, slopes"),
        (["extra.dropout=0.5"], "run.extra needs a value for 'width'"),
        (["seed=1", "seed=2"], "run.seed is given twice: 1 and 2; leave one out"),
    ],
)
def test_what_a_refused_override_says(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(RUN, texts)
    assert str(caught.value) == message


def test_the_caller_names_the_whole() -> None:
    with pytest.raises(ConfigError, match=r"^recipe has no field 'sead'; did you mean 'seed'\?$"):
        override(RUN, ["sead=1"], where="recipe")


# ---- fingerprints ----------------------------------------------------------------------------------------------------


def test_fingerprint_is_frozen() -> None:
    """Identity hashes of old runs are compared for ever: neither libraries nor Python may move this."""
    run = Run(
        name="é\n",
        seed=2**63 - 1,
        position=Alibi(max_bias=1e22, slopes=(0.1, 1e-7, -0.0)),
        extra=Layer(width=-2, dropout=5e-324),
        optimizer=Optimizer(lr=3e-4, clip=None),
    )
    assert canonical(encode(run)) == (
        b'{"dtype":"f32","extra":{"dropout":5e-324,"width":-2},"layers":[{"dropout":0.0,"width":2}],"name":"\\u00e9\\n",'
        b'"on":false,"optimizer":{"clip":null,"lr":0.0003},'
        b'"position":{"kind":"Alibi","max_bias":1e+22,"slopes":[0.1,1e-07,-0.0]},"second":null,"seed":9223372036854775807}'
    )
    assert fingerprint(run) == "d6218ec568045ca44ee2d6ee22c472cf872f1adb95046684d603fab129a7d82e"


@given(runs, runs)
def test_fingerprints_are_equal_exactly_for_equal_configs(one: Run, other: Run) -> None:
    assert (fingerprint(one) == fingerprint(other)) == (canonical(encode(one)) == canonical(encode(other)))
    assert (differences(encode(one), encode(other)) == []) == (encode(one) == encode(other))


def test_fingerprint_sees_every_field() -> None:
    """The mutation: change any one leaf, and the fingerprint and the differences say so."""
    changes = [
        "name=y",
        "seed=1",
        "on=true",
        "dtype=bf16",
        "position.theta=10000.000000000002",
        "second.kind=Rope",
        "layers.0.dropout=5e-324",
        'extra={"width":2}',
        "optimizer.clip=null",
    ]
    seen = {fingerprint(override(RUN, [c])) for c in changes} | {fingerprint(RUN)}
    assert len(seen) == len(changes) + 1
    for change in changes:
        [line] = differences(encode(RUN), encode(override(RUN, [change])))
        assert line.startswith(change.partition("=")[0].removesuffix(".kind") + ": ")


def test_fingerprint_of_a_json_value_is_that_of_the_config() -> None:
    assert fingerprint(encode(RUN)) == fingerprint(RUN)
    assert fingerprint({"b": 1, "a": 2}) == fingerprint({"a": 2, "b": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint({"a": float("nan")})


def test_differences_name_leaves() -> None:
    ours = {"a": 1, "b": {"c": [1, {"d": 2}]}, "e": [1], "gone": True}
    theirs = {"a": 1.0, "b": {"c": [1, {"d": 3}]}, "e": [1, 2], "new": None}
    assert differences(ours, theirs) == [
        "a: 1 -> 1.0",
        "b.c.1.d: 2 -> 3",
        "e: [1] -> [1, 2]",
        "gone: true -> null",
        "new: null -> null",
    ]
    assert differences(ours, copy.deepcopy(ours)) == []
