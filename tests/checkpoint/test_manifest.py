"""The sealed manifest."""

import copy
import dataclasses
import json

import pytest

from jaxllm.checkpoint.manifest import ArrayRecord, Manifest, broken_seal, decode_manifest, encode, seal, state_digest
from jaxllm.core.errors import ConfigError

ARRAYS = (
    ArrayRecord(name="opt.count", shape=(), dtype="int32", digest="0" * 16),
    ArrayRecord(name="params.w", shape=(2, 3), dtype="float32", digest="1" * 16),
)


@pytest.fixture
def manifest() -> Manifest:
    from tests.checkpoint.states import FINGERPRINT, make_items, manifest_of

    made = manifest_of(3, make_items(3))
    assert made.fingerprint == FINGERPRINT
    return made


def test_round_trip_through_text(manifest: Manifest) -> None:
    raw = encode(manifest)
    assert json.loads(json.dumps(raw)) == raw
    assert decode_manifest(json.loads(json.dumps(raw))) == manifest


def test_items(manifest: Manifest) -> None:
    assert manifest.items == {"params", "opt"}
    assert set(manifest.of_items(["params"])) == {
        "params.blocks.attention.q",
        "params.blocks.norm",
        "params.embed",
        "params.final_norm",
    }


def test_the_seal_holds_and_any_change_breaks_it(manifest: Manifest) -> None:
    cursor = {"step": 3, "grain": {"next_index": 3}}
    sealed = seal(manifest, cursor)
    assert broken_seal(json.loads(json.dumps(sealed)), cursor) is None
    assert broken_seal(sealed, {"step": 4, "grain": {"next_index": 3}}) == "cursor: its sha256 is not the one in meta"
    for path in (["manifest", "tokens"], ["manifest", "lineage"], ["manifest", "rng", "seed"]):
        changed = copy.deepcopy(sealed)
        node = changed
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] += 1
        assert broken_seal(changed, cursor) == "meta: its sha256 does not match its content"
    assert broken_seal({}, cursor) == "meta: not a sealed manifest"


def test_the_state_digest_depends_on_everything_about_an_array() -> None:
    seen = {state_digest(ARRAYS), state_digest(ARRAYS[:1])}
    for change in ({"name": "params.v"}, {"shape": (3, 2)}, {"dtype": "int32"}, {"digest": "2" * 16}):
        seen.add(state_digest((ARRAYS[0], dataclasses.replace(ARRAYS[1], **change))))
    assert len(seen) == 6
    assert state_digest(ARRAYS) == state_digest(ARRAYS[::-1])


def test_what_cannot_be_is_refused(manifest: Manifest) -> None:
    raw = encode(manifest)
    for change, message in (
        ({"step": -1}, "none is negative"),
        ({"state_digest": "0" * 64}, "state_digest is not that of the arrays"),
        ({"arrays": raw["arrays"] * 2}, "two arrays have one name"),
        ({"lineag": 0}, "meta has no field 'lineag'; did you mean 'lineage'"),
        ({"schema": 2}, "this jaxllm reads schemas 1 to 1"),
        ({"schema": None}, "this jaxllm reads schemas 1 to 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            decode_manifest(raw | change)
    with pytest.raises(ConfigError, match="not a JSON object"):
        decode_manifest([])
