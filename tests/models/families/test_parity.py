"""Families against transformers, as tools/parity.py compares them; and that it sees what is wrong."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jaxllm.models.config import GeGlu, LayerKind, Model, Moe, ParallelNorm, PreNorm, QkNorm, RmsNorm, Rope
from jaxllm.models.families.registry import FAMILIES
from tools import parity
from tools.parity import CASES, Case, compare

pytestmark = pytest.mark.torch

Change = Callable[[Model], Model]


def named(case: Case) -> str:
    return f"{case.family}: {case.title}"


def test_every_family_is_compared() -> None:
    assert {case.family for case in CASES} == {f.name for f in FAMILIES}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=named)
def test_computes_what_transformers_computes(case: Case) -> None:
    result = compare(case, seed=0)
    assert result.error <= parity.TOLERANCE
    equal, compared = result.greedy
    assert equal == compared
    assert not case.greedy or compared >= len(parity.PROMPTS) * parity.CONTINUED / 2
    assert result.same_bits
    assert result.rebuilt
    assert result.good


def attention(**own: Any) -> Change:
    return lambda m: dataclasses.replace(m, attention=dataclasses.replace(m.attention, **own))


def rope(**own: Any) -> Change:
    def changed(model: Model) -> Model:
        assert isinstance(model.position, Rope)
        return dataclasses.replace(model, position=dataclasses.replace(model.position, **own))

    return changed


def whole(**own: Any) -> Change:
    return lambda m: dataclasses.replace(m, **own)


def windows(window: int | None) -> Change:
    return lambda m: dataclasses.replace(m, pattern=tuple(dataclasses.replace(k, window=window) for k in m.pattern))


def experts(**own: Any) -> Change:
    def changed(model: Model) -> Model:
        assert isinstance(model.ffn, Moe)
        return dataclasses.replace(model, ffn=dataclasses.replace(model.ffn, **own))

    return changed


# What a table could get wrong and still read, write and carry every bit.
WRONG: list[tuple[str, str, Change]] = [
    ("llama", "GQA 6:2", rope(theta=9_000.0)),
    ("llama", "GQA 6:2", whole(norm=RmsNorm(eps=1e-3))),
    ("llama", "dynamic NTK", rope(scaling=None)),
    ("mistral", "window, MQA", windows(10)),
    ("qwen2", "window above", whole(pattern=(LayerKind(window=9), LayerKind()))),
    ("gemma2", "caps, window", whole(embedding_scale=1.0)),
    ("gemma2", "caps, window", attention(softcap=None)),
    ("gemma2", "caps, window", whole(logit_softcap=31.0)),
    ("gemma2", "caps, window", attention(scale="sqrt")),
    ("gemma2", "no caps, biases, untied, GELU", whole(ffn=GeGlu(width=37, gelu="tanh"))),
    ("gemma3", "local theta, window", whole(pattern=(LayerKind(window=9), LayerKind()))),
    ("phi3", "half turns, window", rope(fraction=1.0)),
    ("gpt_neox", "side by side, quarter turns", whole(residual=PreNorm())),
    ("crystal", "part of every head turns", rope(pairs="half")),
    ("btlm", "three heads", attention(scale="sqrt")),
    ("mixtral", "5 experts, window", experts(top_k=1)),
    ("mixtral", "5 experts, window", experts(normalize=False)),
    ("mixtral", "5 experts, window", experts(gate="sigmoid")),
    ("gpt_neox", "one after another, tied, no biases, tanh", whole(residual=ParallelNorm())),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "title", "spoil"), WRONG)
def test_a_wrong_choice_of_parts_is_seen(family: str, title: str, spoil: Change) -> None:
    case = next(c for c in CASES if (c.family, c.title) == (family, title))
    assert compare(dataclasses.replace(case, greedy=False), seed=0, spoil=spoil).error > parity.TOLERANCE


def test_a_norm_over_the_wrong_numbers_does_not_fit() -> None:
    case = next(c for c in CASES if c.family == "qwen3")
    with pytest.raises((TypeError, ValueError)):
        compare(dataclasses.replace(case, greedy=False), seed=0, spoil=attention(qk_norm=QkNorm(over="width")))


def test_one_bit_is_seen() -> None:
    x = {"a": np.zeros((2, 3), np.float32), "b": np.ones(2, np.float32)}
    other = {name: value.copy() for name, value in x.items()}
    assert parity.equal_bits(x, other)
    other["a"][1, 2] = -0.0
    assert not parity.equal_bits(x, other)
    assert not parity.equal_bits(x, {"a": x["a"]})
    assert not parity.equal_bits(x, x | {"b": np.ones((2, 1), np.float32)})


def test_a_greedy_text_that_parts_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[0]
    sound = parity.generate

    def other(*args: Any, **settings: Any) -> list[list[int]]:
        texts = sound(*args, **settings)
        texts[0][7] = (texts[0][7] + 1) % 61
        return texts

    monkeypatch.setattr(parity, "generate", other)
    equal, compared = compare(case, seed=0).greedy
    assert equal == compared - 1


def test_the_table_says_what_missed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    case = dataclasses.replace(CASES[0], greedy=False)
    good = parity.Result(case, "2x24", 1e-6, (40, 40), True, True)
    monkeypatch.setattr("sys.argv", ["parity.py", "--family", "llama", "--seed", "3"])
    monkeypatch.setattr(parity, "CASES", (case,))
    for wrong, code in [
        ({}, 0),
        ({"error": 2e-4}, 1),
        ({"greedy": (39, 40)}, 1),
        ({"same_bits": False}, 1),
        ({"rebuilt": False}, 1),
        ({"error": float("nan")}, 1),
    ]:
        monkeypatch.setattr(parity, "compare", lambda c, s, wrong=wrong: dataclasses.replace(good, **wrong))
        assert parity.main() == code, wrong
        said = capsys.readouterr().out
        assert "seed 3" in said and f"{code} missed" in said
        # A row is a line, also where nobody looks at a terminal.
        assert [line for line in said.splitlines() if "llama" in line and "GQA 6:2" in line and "2x24" in line], said
