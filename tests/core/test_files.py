import hashlib
import json
import math
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxllm.core.errors import JaxllmError
from jaxllm.core.files import (
    cut_unfinished_line,
    fsync_dir,
    make_folder,
    read_json,
    sha256_file,
    write_all,
    write_atomic,
    write_json_atomic,
)
from jaxllm.core.floats import finite_or_none, float32_bits, float32_of

REWRITER = """
import sys
from jaxllm.core.files import write_atomic
n = 0
while True:
    n += 1
    write_atomic(sys.argv[1], f"{n} ".encode() * 20_000)
"""


def test_sha256_of_a_file_is_the_one_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 1_000_000)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(b"abc" * 1_000_000).hexdigest()


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.txt", "grüße")
    write_atomic(tmp_path / "a.txt", b"second")
    assert (tmp_path / "a.txt").read_bytes() == b"second"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~umask


def test_a_failed_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "a", "old")

    def full(fd: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "a", "new")
    monkeypatch.undo()
    assert (tmp_path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: whole(fd, bytes(data[:7])))
    fd = os.open(tmp_path / "a", os.O_WRONLY | os.O_CREAT)
    write_all(fd, b"0123456789" * 10)
    os.close(fd)
    assert (tmp_path / "a").read_bytes() == b"0123456789" * 10


@pytest.mark.slow
def test_a_killed_writer_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "state"
    seen = set()
    for wait in (0.15, 0.2, 0.22, 0.25, 0.3):
        writer = subprocess.Popen([sys.executable, "-c", REWRITER, str(path)])
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(wait)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        words = path.read_text().split()
        assert len(words) == 20_000
        assert len(set(words)) == 1
        seen.add(words[0])
    assert len(seen) > 1


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None, True], "a": "ü"}
    write_json_atomic(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert list(json.loads((tmp_path / "x.json").read_text())) == ["b", "a"]
    with pytest.raises(ValueError, match="JSON"):
        write_json_atomic(tmp_path / "x.json", {"loss": math.nan})
    assert read_json(tmp_path / "x.json") == value


@pytest.mark.parametrize("text", [b"", b'{"a": 1', b'{"a": NaN}', b'{"a": Infinity}', b"\xff\xfe", b"{} {}"])
def test_bad_json_is_an_error_with_the_name_of_the_file(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "run.json").write_bytes(text)
    with pytest.raises(JaxllmError, match=r"run\.json is not JSON"):
        read_json(tmp_path / "run.json")


def test_folders_are_made_once_and_for_good(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b" / "c")
    make_folder(tmp_path / "a" / "b" / "c")
    fsync_dir(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()


def test_float32_bits_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, 20_000, dtype=np.uint32)
    special = np.array([0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00001, 0xFFC12345, 1, 0x807FFFFF], np.uint32)
    for word in np.concatenate([words, special]):
        value = word.view(np.float32)
        bits = float32_bits(value)
        assert bits == f"{int(word):08x}"
        read = float32_of(bits)
        assert (math.isnan(read) and np.isnan(value)) or (read == value and np.signbit(value) == np.signbit(read))
        assert finite_or_none(value) == (read if math.isfinite(read) else None)


@pytest.mark.parametrize("x", [0.1, 1e300, np.float64(0.1), np.zeros(1, np.float32)])
def test_what_is_not_a_float32_has_no_bits(x: object) -> None:
    with pytest.raises(ValueError, match=r"float32|shape"):
        float32_bits(x)
    assert float32_bits(0.5) == "3f000000"


@pytest.mark.parametrize("bits", ["", "3f80000", "3F800000", "3f80000g", " 3f80000", "+3f80000"])
def test_bad_bits_are_refused(bits: str) -> None:
    with pytest.raises(ValueError, match="8 lower-case hex digits"):
        float32_of(bits)


@pytest.mark.parametrize(
    ("content", "left"),
    [
        (b"", b""),
        (b"a\nb\n", b"a\nb\n"),
        (b"a\nb", b"a\n"),
        (b"no newline", b""),
        (b"a\n" + b"x" * 200_000, b"a\n"),
        (b"x" * 200_000, b""),
        (b"x" * 65_535 + b"\n" + b"y" * 65_536, b"x" * 65_535 + b"\n"),
    ],
)
def test_an_unfinished_line_is_cut(content: bytes, left: bytes, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(content)
    cut_unfinished_line(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == left
    cut_unfinished_line(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()
