"""The seal of a release: release.json names every file with its size and sha256, and hashes itself. No jax.

Only one sequence of bytes is valid for a given content, so that no bit of release.json can change unseen either.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from jaxllm.core.config import canonical
from jaxllm.core.errors import CheckFailed, RunError
from jaxllm.core.files import sha256_file

RELEASE = "release.json"
HEX64 = re.compile(r"[0-9a-f]{64}")
# What a hub puts into every repository; and what its client keeps in a folder that it downloads to.
HUBS_OWN = (".gitattributes",)
_CLIENTS_OWN = ".cache/huggingface/"
Report = Callable[[str, int, int], None]


def render(content: Mapping[str, Any]) -> bytes:
    """The bytes of release.json for its content without `sha256`, which is added as the last member."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    sealed = rest | {"sha256": hashlib.sha256(canonical(rest)).hexdigest()}
    return (json.dumps(sealed, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_sealed(folder: Path) -> dict[str, Any]:
    """Content of release.json. RunError: it is no release; CheckFailed: a byte of it is not what was written."""
    path = folder / RELEASE
    if path.is_symlink() or not path.is_file():
        raise RunError(f"{folder} is no release: it has no {RELEASE}")
    data = path.read_bytes()
    try:
        content = json.loads(data)
        again = render(content) if isinstance(content, dict) else b""
    except (ValueError, RecursionError) as err:
        raise CheckFailed(f"{RELEASE}: {err}") from None
    if again != data:
        at = next((i for i, (a, b) in enumerate(zip(again, data, strict=False)) if a != b), min(len(again), len(data)))
        raise CheckFailed(f"{RELEASE}: it is not what its sha256 was made of (first difference to it: byte {at})")
    return dict(content)


def check_files(folder: Path, content: Mapping[str, Any], report: Report = lambda *_: None) -> tuple[int, int]:
    """(files, bytes) of a release that holds all that it lists, bit for bit, and nothing else. CheckFailed names the
    first file that does not."""
    listed = _listed(content)
    for extra in sorted(_there(folder) - set(listed) - {RELEASE}):
        raise CheckFailed(f"{extra}: it is in the folder, but {RELEASE} does not list it")
    for i, (name, (digest, size)) in enumerate(listed.items()):
        report("files", i + 1, len(listed))
        path = folder / name
        if not path.is_file():
            raise CheckFailed(f"{name}: {RELEASE} lists it, but it is not there")
        if (found := path.stat().st_size) != size:
            raise CheckFailed(f"{name}: it has {found} bytes, listed are {size}")
        if (found_digest := sha256_file(path)) != digest:
            raise CheckFailed(f"{name}: its sha256 is {found_digest[:12]}, listed is {digest[:12]}")
    return len(listed), sum(size for _, size in listed.values())


def _listed(content: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """path -> (sha256, bytes), of paths that stay in the folder, each once and in order."""
    files, listed = content.get("files"), dict[str, tuple[str, int]]()
    if not isinstance(files, list):
        raise CheckFailed(f"{RELEASE}: files: expected a list")
    for i, entry in enumerate(files):
        match entry:
            case {"path": str(name), "sha256": str(digest), "bytes": int(size)} if (
                HEX64.fullmatch(digest) and size >= 0
            ):
                pass
            case _:
                raise CheckFailed(f"{RELEASE}: files[{i}]: expected path, sha256 and bytes")
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or str(pure) != name or "\\" in name or not name.isprintable():
            raise CheckFailed(f"{RELEASE}: files[{i}].path: {name!r} is no plain path inside the release")
        if listed and name <= next(reversed(listed)):
            raise CheckFailed(f"{RELEASE}: files[{i}].path: {name} is listed twice or out of order")
        listed[name] = (digest, size)
    return listed


def _there(folder: Path) -> set[str]:
    """Every file under a folder, but for what a hub and its client add to a download. CheckFailed: something is neither
    a plain file nor a folder."""
    found = set()
    for base, folders, files in os.walk(folder, onerror=_raise):
        for name in [*folders, *files]:
            path = Path(base, name)
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise CheckFailed(f"{relative}: it is a link or a special file; a release holds plain files only")
            if name in files and relative not in HUBS_OWN and not relative.startswith(_CLIENTS_OWN):
                found.add(relative)
    return found


def _raise(err: OSError) -> None:
    raise err
