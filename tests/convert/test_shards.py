"""Files of parameters: what is written is what the library reads, and what is broken is refused in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxllm.convert.folders import appearing_folder
from jaxllm.convert.shards import INDEX, SINGLE, Out, cut, open_shards, stored, write_shards
from jaxllm.core.errors import DataError
from jaxllm.core.files import sha256_file

DICE = np.random.default_rng(5)
TENSORS = {
    name: DICE.standard_normal(shape).astype(np.float32)
    for name, shape in {"a": (3, 5), "b.weight": (7,), "c": (2, 3, 4), "d": (1, 1), "e": (31, 2)}.items()
}


def outs(tensors: dict[str, Any] = TENSORS) -> list[Out]:
    return [Out(name, x.shape, lambda x=x: x) for name, x in tensors.items()]  # type: ignore[misc]


def write(folder: Path, *, shard_bytes: int = 10**9, dtype: str = "float32") -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    return write_shards(folder, outs(), dtype, exact=dtype == "float32", shard_bytes=shard_bytes)


@pytest.mark.parametrize("shard_bytes", [1, 60, 150, 10**9])
def test_the_library_reads_what_is_written(shard_bytes: int, tmp_path: Path) -> None:
    hashes = write(tmp_path / "m", shard_bytes=shard_bytes)
    found: dict[str, Any] = {}
    for name, digest in hashes.items():
        assert sha256_file(tmp_path / "m" / name) == digest
        inside = load_file(tmp_path / "m" / name)
        assert len(inside) == 1 or sum(x.nbytes for x in inside.values()) <= shard_bytes
        found |= inside
    assert found.keys() == TENSORS.keys()
    for name, x in TENSORS.items():
        np.testing.assert_array_equal(found[name], x)
    if len(hashes) == 1:
        assert set(hashes) == {SINGLE} and not (tmp_path / "m" / INDEX).exists()
    else:
        assert set(hashes) == {f"model-{i:05d}-of-{len(hashes):05d}.safetensors" for i in range(1, len(hashes) + 1)}
        index = json.loads((tmp_path / "m" / INDEX).read_text())
        assert index["metadata"] == {"total_size": sum(x.nbytes for x in TENSORS.values())}
        assert index["weight_map"].keys() == TENSORS.keys()
    for name, entry in open_shards(tmp_path / "m").items():
        np.testing.assert_array_equal(entry.read(), TENSORS[name])


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    mixed = {"x": TENSORS["a"], "y": TENSORS["c"].astype(np.float16), "z": np.arange(6, dtype=np.int64)}
    save_file(mixed, tmp_path / SINGLE, metadata={"format": "pt"})
    found = open_shards(tmp_path)
    for name in ("x", "y"):
        np.testing.assert_array_equal(found[name].read(), mixed[name])
    with pytest.raises(DataError, match="z is of type I64"):
        found["z"].check_type()


def test_files_are_cut_where_the_next_tensor_does_not_fit() -> None:
    sizes = [[t.name for t in inside] for inside in cut(outs(), "bfloat16", 60)]
    assert sizes == [["a", "b.weight"], ["c", "d"], ["e"]]  # 30 + 14, 48 + 2, 124 bytes


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_is_to_nearest_even_and_only_when_wanted(dtype: str) -> None:
    x = TENSORS["a"]
    with pytest.raises(DataError, match=f"w is float32 and would be rounded by {dtype}.*--round"):
        stored(x, dtype, "w", exact=True)
    narrow = stored(x, dtype, "w", exact=False)
    again = stored(narrow.astype(np.float32), dtype, "w", exact=True)  # what fits needs no permission
    assert again.tobytes() == narrow.tobytes()
    if dtype == "bfloat16":
        bits = x.view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        np.testing.assert_array_equal(narrow.view(np.uint16), rounded.astype(np.uint16))


def test_a_number_that_a_type_cannot_say_is_refused() -> None:
    x = np.array([1.0, -70000.0], np.float32)
    with pytest.raises(DataError, match=r"w holds 7e\+04, which is more than float16 can say"):
        stored(x, "float16", "w", exact=False)
    assert stored(x, "bfloat16", "w", exact=False).dtype == ml_dtypes.bfloat16
    infinite = np.array([np.inf, np.nan, 1.0], np.float32)
    assert np.isinf(stored(infinite, "float16", "w", exact=False)[0])


def header(path: Path, change: Any) -> None:
    """Rewrite the header of a file, the data as it was."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    raw = json.loads(data[8 : 8 + size])
    text = change(raw)
    text = (text if isinstance(text, str) else json.dumps(raw)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def tensor(raw: Any, **fields: Any) -> None:
    raw["c"].update(fields)


DAMAGE = {
    "cut": (lambda p: os.truncate(p, p.stat().st_size - 1), "bytes and its header describes"),
    "longer": (lambda p: p.write_bytes(p.read_bytes() + b"x"), "bytes and its header describes"),
    "empty": (lambda p: p.write_bytes(b""), "cannot hold a header"),
    "length": (lambda p: p.write_bytes(b"\xff" * 8 + p.read_bytes()[8:]), "cannot hold a header"),
    "text": (lambda p: header(p, lambda raw: "{nothing"), "its header is not JSON"),
    "list": (lambda p: header(p, lambda raw: "[1,2]"), "not a JSON object"),
    "twice": (lambda p: header(p, lambda raw: '{"a":1,"a":2}'), "twice"),
    "shape": (lambda p: header(p, lambda raw: tensor(raw, shape=[2, 3, 5])), r"c is F32\[2, 3, 5\] in 96 bytes"),
    "negative": (lambda p: header(p, lambda raw: tensor(raw, shape=[-2, -3, 4])), r"c has shape \[-2, -3, 4\]"),
    "fields": (lambda p: header(p, lambda raw: raw.update(c=[])), "c has no dtype"),
    "overlap": (lambda p: header(p, lambda raw: tensor(raw, data_offsets=[0, 96])), "begins at byte"),
    "type": (lambda p: header(p, lambda raw: tensor(raw, dtype="F7")), "c is of type 'F7'"),
    "no type": (lambda p: header(p, lambda raw: tensor(raw, dtype=["F32"])), r"c is of type \['F32'\]"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    damage, says = DAMAGE[name]
    write(tmp_path)
    damage(tmp_path / SINGLE)
    with pytest.raises(DataError, match=says) as said:
        open_shards(tmp_path)
    assert SINGLE in str(said.value) and "\n" not in str(said.value)


def index(folder: Path, **names: str) -> None:
    raw = json.loads((folder / INDEX).read_text())
    raw["weight_map"].update(names)
    (folder / INDEX).write_text(json.dumps(raw))


def test_an_index_is_about_its_files(tmp_path: Path) -> None:
    first, last = "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"
    cases = [
        (lambda p: index(p, a="../x.safetensors"), "'../x.safetensors', which is not a safetensors file beside it"),
        (lambda p: index(p, a="/etc/passwd"), "which is not a safetensors file beside it"),
        (lambda p: index(p, a=last), f"a lies in {first} and in the index in {last}"),
        (lambda p: index(p, more=first), f"{first} does not hold more"),
        (lambda p: (p / last).unlink(), f"{last} is missing"),
        (lambda p: (p / INDEX).write_text('{"weight_map": [1]}'), "no weight_map"),
    ]
    for number, (break_it, says) in enumerate(cases):
        place = tmp_path / str(number)
        write(place, shard_bytes=100)
        open_shards(place)
        break_it(place)
        with pytest.raises(DataError) as said:
            open_shards(place)
        assert says in str(said.value)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(DataError, match=r"pytorch_model.bin, and reading a pickle runs whatever code is in it"):
        open_shards(tmp_path)
    with pytest.raises(DataError, match=r"has neither model\.safetensors nor"):
        open_shards(tmp_path.parent / tmp_path.name / "..")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyError), appearing_folder(out) as place:
        (place / "x").write_text("half")
        assert not out.exists()
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), appearing_folder(tmp_path / "new" / "newer" / "out"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    with appearing_folder(out) as place:
        (place / "x").write_text("whole")
        with pytest.raises(DataError, match=r"out\.partial exists"), appearing_folder(out):
            pass
    assert (out / "x").read_text() == "whole"
    with pytest.raises(DataError, match="is not an empty folder"), appearing_folder(out):
        pass


# Written one tensor at a time: 240 MB in tensors of 4 MB.
MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from jaxllm.convert.shards import Out, write_shards
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
tensors = [Out(f"t{i}", (1024, 1024), lambda i=i: np.full((1024, 1024), i, np.float32)) for i in range(60)]
before = peak()
write_shards(Path(sys.argv[1]), tensors, "bfloat16", exact=False, shard_bytes=20_000_000)
print(peak() - before)
"""


def test_memory_is_that_of_a_tensor(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 40, "MB beyond the start, for 240 MB of tensors in shards of 20 MB"
    assert len(list(tmp_path.glob("model-*.safetensors"))) == 7
