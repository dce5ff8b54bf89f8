"""The seal of a release: every bit of every file counts, release.json's own included."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxllm.core.errors import CheckFailed, RunError
from jaxllm.core.files import sha256_file
from jaxllm.release.sealed import RELEASE, check_files, read_sealed, render

CONTENT = {
    "LICENSE": b"Apache\n \n",
    "checkpoints/step8-tokens64/hf/model.safetensors": b"\x08\0\0\0\0\0\0\0{}      " + bytes(64),
    "record/losses/c/0/0": bytes(range(200)),
    "record/steps/00000000.jsonl": b'{"step": 1}\n',
}


def entries(folder: Path) -> list[dict[str, Any]]:
    return [{"path": n, "sha256": sha256_file(folder / n), "bytes": len(b), "role": "r"} for n, b in CONTENT.items()]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    folder = tmp_path / "release"
    for name, data in CONTENT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / RELEASE).write_bytes(render({"schema": 1, "run": {"name": "é"}, "files": entries(folder)}))
    return folder


def check(folder: Path) -> tuple[int, int]:
    return check_files(folder, read_sealed(folder))


def test_a_whole_release_passes(release: Path) -> None:
    assert check(release) == (len(CONTENT), sum(map(len, CONTENT.values())))


def test_every_flipped_bit_is_found_and_its_file_named(release: Path) -> None:
    dice = random.Random(7)
    for name in [*CONTENT, RELEASE]:
        path = release / name
        data = path.read_bytes()
        for bit in dice.sample(range(8 * len(data)), min(150, 8 * len(data))):
            broken = bytearray(data)
            broken[bit // 8] ^= 1 << bit % 8
            path.write_bytes(broken)
            with pytest.raises(CheckFailed, match=f"^{name}: "):
                check(release)
        path.write_bytes(data)
    check(release)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "LICENSE").unlink(), "^LICENSE: .* not there"),
        (lambda f: (f / "LICENSE").write_bytes(b"Apache"), "^LICENSE: it has 6 bytes, listed are 9"),
        (lambda f: (f / "record/more").write_bytes(b""), "^record/more: .* does not list it"),
        (lambda f: (f / "record/link").symlink_to("/"), "^record/link: it is a link"),
        (lambda f: (f / RELEASE).write_bytes((f / RELEASE).read_bytes() + b"\n"), "^release.json: it is not"),
    ],
)
def test_damage_to_the_folder_is_named(release: Path, damage: Callable[[Path], Any], said: str) -> None:
    damage(release)
    with pytest.raises(CheckFailed, match=said):
        check(release)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a//b", "a/./b", "a\\b", "a\nb", "", ".", "LICENSE"])
def test_a_path_that_leaves_the_folder_or_comes_twice_is_refused(release: Path, path: str) -> None:
    files = [entries(release)[0], {"path": path, "sha256": "0" * 64, "bytes": 0}]
    with pytest.raises(CheckFailed, match=r"^release.json: files\[1\].path"):
        check_files(release, {"files": files})


def test_another_folder_is_no_release(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no release"):
        read_sealed(tmp_path)
