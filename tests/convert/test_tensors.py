"""Tables applied both ways: every element is where the layout says, and nothing is lost on the way."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.convert.tensors import Array, tensors_of
from jaxllm.models.config import Attention, Gelu, LayerNorm, Model, Moe, QkNorm, SwiGlu
from jaxllm.models.count import shapes
from jaxllm.models.families import names
from jaxllm.models.families.table import Map, letters, one

# 6 heads on 2, of a width that is not width / heads, and an odd feed-forward width.
MODEL = Model(
    vocab_size=13, width=10, layers=3, attention=Attention(heads=6, kv_heads=2, head_width=4), ffn=SwiGlu(width=7)
)
EVEN = dataclasses.replace(MODEL, attention=dataclasses.replace(MODEL.attention, kv_heads=6, biases=("q", "k", "v")))


def values(sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Arrays in which no number occurs twice, also not in two of them."""
    found, start = {}, 0
    for path, shape in sizes.items():
        count = int(np.prod(shape))
        found[path] = np.arange(start, start + count, dtype=np.float32).reshape(shape)
        start += count
    return found


def there_and_back(maps: tuple[Map, ...], ours: Mapping[str, Array]) -> dict[str, Array]:
    """Their tensors by name; asserts that they bring ours back to the bit, each element once."""
    back = {path: np.full_like(x, np.nan) for path, x in ours.items()}
    theirs = {}
    for tensor in tensors_of(maps, {path: x.shape for path, x in ours.items()}):
        theirs[tensor.name] = tensor.gather(lambda path, index: ours[path][index])
        assert theirs[tensor.name].shape == tensor.shape
        for part, x in tensor.scatter(theirs[tensor.name]):
            assert np.isnan(back[part.path][part.index]).all()
            back[part.path][part.index] = x
    for path, x in ours.items():
        np.testing.assert_array_equal(back[path], x, err_msg=path)
    assert sum(x.size for x in theirs.values()) == sum(x.size for x in ours.values())
    return theirs


@given(
    heads=st.integers(1, 3),
    group=st.integers(1, 3),
    head_width=st.sampled_from([2, 4, 6]),
    width=st.integers(1, 9),
    ffn=st.integers(1, 9),
    layers=st.integers(1, 3),
    vocab=st.integers(1, 9),
    tied=st.booleans(),
    biased=st.booleans(),
    norm=st.sampled_from([None, "head", "width"]),
)
def test_any_llama_comes_back(
    heads: int,
    group: int,
    head_width: int,
    width: int,
    ffn: int,
    layers: int,
    vocab: int,
    tied: bool,
    biased: bool,
    norm: str | None,
) -> None:
    model = Model(
        vocab_size=vocab,
        width=width,
        layers=layers,
        attention=Attention(
            heads=heads * group,
            kv_heads=heads,
            head_width=head_width,
            biases=("q", "k", "v", "o") if biased else (),
            qk_norm=None if norm is None else QkNorm(over="head" if norm == "head" else "width"),
        ),
        ffn=SwiGlu(width=ffn, bias=biased),
        tied_embeddings=tied,
    )
    there_and_back(names.usual(model), values(shapes(model)))


def test_projections_are_transposed_and_heads_merged() -> None:
    ours = values(shapes(MODEL))
    theirs = there_and_back(names.usual(MODEL), ours)
    q, o = ours["blocks.attention.q"], ours["blocks.attention.o"]
    for h in range(6):
        for k in range(4):
            np.testing.assert_array_equal(theirs["model.layers.2.self_attn.q_proj.weight"][h * 4 + k], q[2, :, h, k])
            np.testing.assert_array_equal(theirs["model.layers.1.self_attn.o_proj.weight"][:, h * 4 + k], o[1, h, k])
    np.testing.assert_array_equal(theirs["lm_head.weight"], ours["head.kernel"].T)
    np.testing.assert_array_equal(theirs["model.layers.0.mlp.up_proj.weight"], ours["blocks.mlp.up"][0].T)


def fused(model: Model, join: Literal["rows", "heads"]) -> tuple[Map, ...]:
    """The llama table with q, k and v, and gate and up, in one tensor each."""
    parts = ("q", "k", "v")
    paths = tuple(f"blocks.attention.{n}" for n in parts)
    kept = [m for m in names.usual(model) if not set(m.ours) & {*paths, "blocks.mlp.gate", "blocks.mlp.up"}]
    kept = [m for m in kept if not m.ours[0].endswith(("q_bias", "k_bias", "v_bias"))]
    qkv = ("(HK)D", "(GK)D", "(GK)D")
    kept.append(Map(theirs="h.{L}.qkv.weight", ours=paths, layouts=qkv, join=join))
    if model.attention.biases:
        biases, rows = tuple(f"{p}_bias" for p in paths), ("(HK)", "(GK)", "(GK)")
        kept.append(Map(theirs="h.{L}.qkv.bias", ours=biases, layouts=rows, join=join))
    gates = ("blocks.mlp.gate", "blocks.mlp.up")
    kept.append(Map(theirs="h.{L}.gate_up.weight", ours=gates, layouts=("FD", "FD")))
    return tuple(kept)


def test_rows_of_grouped_heads_lie_one_below_the_other() -> None:
    ours = values(shapes(MODEL))
    theirs = there_and_back(fused(MODEL, "rows"), ours)
    qkv = theirs["h.1.qkv.weight"]
    assert qkv.shape == (6 * 4 + 2 * 4 + 2 * 4, 10)
    np.testing.assert_array_equal(qkv[5 * 4 + 1], ours["blocks.attention.q"][1, :, 5, 1])
    np.testing.assert_array_equal(qkv[24 + 1 * 4 + 3], ours["blocks.attention.k"][1, :, 1, 3])
    np.testing.assert_array_equal(qkv[32 + 1 * 4 + 3], ours["blocks.attention.v"][1, :, 1, 3])
    np.testing.assert_array_equal(theirs["h.0.gate_up.weight"][7 + 2], ours["blocks.mlp.up"][0, :, 2])


def test_heads_alternate() -> None:
    ours = values(shapes(EVEN))
    theirs = there_and_back(fused(EVEN, "heads"), ours)
    for h in range(6):
        for j, n in enumerate("qkv"):
            for k in range(4):
                row = h * 12 + j * 4 + k
                np.testing.assert_array_equal(theirs["h.2.qkv.weight"][row], ours[f"blocks.attention.{n}"][2, :, h, k])
                assert theirs["h.0.qkv.bias"][row] == ours[f"blocks.attention.{n}_bias"][0, h, k]


def test_heads_of_different_numbers_cannot_alternate() -> None:
    with pytest.raises(AssertionError, match="different numbers of heads"):
        tensors_of(fused(MODEL, "heads"), shapes(MODEL))


MOE = dataclasses.replace(MODEL, ffn=Moe(experts=5, top_k=2, expert=SwiGlu(width=7), shared=SwiGlu(width=3)))


@pytest.mark.parametrize("each", [True, False])
def test_experts_apart_or_together(each: bool) -> None:
    inner = {"gate": "FD", "up": "FD", "down": "DF"}
    table = [m for m in names.usual(MODEL) if "mlp." not in m.ours[0]]
    table.append(one("h.{L}.router", "blocks.mlp.router", "ED"))
    table += [one(f"h.{{L}}.shared.{n}", f"blocks.mlp.shared.{n}", x) for n, x in inner.items()]
    if each:
        table += [one(f"h.{{L}}.e.{{E}}.{n}", f"blocks.mlp.{n}", x) for n, x in inner.items()]
    else:
        gates = ("blocks.mlp.gate", "blocks.mlp.up")
        table.append(Map(theirs="h.{L}.e.gate_up", ours=gates, layouts=("EFD", "EFD")))
        table.append(one("h.{L}.e.down", "blocks.mlp.down", "EDF"))
    ours = values(shapes(MOE))
    theirs = there_and_back(tuple(table), ours)
    if each:
        np.testing.assert_array_equal(theirs["h.2.e.4.gate"], ours["blocks.mlp.gate"][2, 4].T)
    else:
        assert theirs["h.2.e.gate_up"].shape == (5, 14, 10)
        np.testing.assert_array_equal(theirs["h.2.e.gate_up"][4, 7:], ours["blocks.mlp.up"][2, 4].T)


def test_a_table_has_every_array_once() -> None:
    table = names.usual(MODEL)
    with pytest.raises(AssertionError, match=r"norm\.scale"):
        tensors_of(tuple(m for m in table if m.ours != ("norm.scale",)), shapes(MODEL))
    with pytest.raises(AssertionError, match=r"embed\.table"):
        tensors_of((*table, one("again", "embed.table", "VD")), shapes(MODEL))
    with pytest.raises(AssertionError, match="two arrays are mapped to one tensor"):
        renamed = [
            dataclasses.replace(m, theirs="x") if m.ours[0] in ("embed.table", "head.kernel") else m for m in table
        ]
        tensors_of(tuple(renamed), shapes(MODEL))
    with pytest.raises(AssertionError, match="has axes LDF"):
        wrong = [m for m in table if m.ours != ("blocks.mlp.up",)]
        tensors_of((*wrong, one("m.{L}.up", "blocks.mlp.up", "FK")), shapes(MODEL))


def test_another_shape_is_named() -> None:
    tensor = next(t for t in tensors_of(names.usual(MODEL), shapes(MODEL)) if t.name.endswith("1.mlp.up_proj.weight"))
    with pytest.raises(ValueError, match=r"1.mlp.up_proj.weight has shape \[10, 7\], \[7, 10\] is expected"):
        list(tensor.scatter(np.zeros((10, 7), np.float32)))


@pytest.mark.parametrize(
    "model",
    [MODEL, EVEN, MOE, dataclasses.replace(MODEL, norm=LayerNorm(), ffn=Gelu(width=7))],
    ids=["grouped", "biased", "moe", "layernorm"],
)
@pytest.mark.parametrize("over", ["head", "width"])
def test_every_array_has_letters_that_fit_its_shape(model: Model, over: str) -> None:
    qk_norm = QkNorm(over="head" if over == "head" else "width")
    model = dataclasses.replace(model, attention=dataclasses.replace(model.attention, qk_norm=qk_norm))
    sizes = {"V": 13, "D": 10, "L": 3, "H": 6, "G": model.attention.kv_heads, "K": 4, "F": 7, "E": 5}
    for path, shape in shapes(model).items():
        found = [3 if x == "F" and "shared" in path else sizes[x] for x in letters(path, len(shape))]
        assert tuple(found) == shape, path
