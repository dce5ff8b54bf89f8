"""A repository on a hub that speaks Hugging Face's protocol: what it holds, and commits to it, by huggingface_hub.

The hub is HF_ENDPOINT, or huggingface.co; the token HF_TOKEN, or that of `hf auth login`, which the library finds by
itself: it is in no message of ours. Large files go the way that the library takes: Xet, or with HF_HUB_DISABLE_XET=1
Git LFS.
"""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jaxllm.core.errors import EXIT_SAVED_START_AGAIN, JaxllmError
from jaxllm.release.publish_plan import MAIN, Branch, Upload
from jaxllm.release.sealed import RELEASE


class HubRefusedError(JaxllmError):
    """The hub does not allow it, or does not know what was named."""


class HubUnavailableError(JaxllmError):
    """The hub does not answer, or is too busy; what was committed stands."""

    exit_code = EXIT_SAVED_START_AGAIN


class Remote(NamedTuple):
    """A file in a branch. sha256: of large files; blob: git's hash of the others."""

    bytes: int
    sha256: str | None
    blob: str

    def is_copy_of(self, file: Upload) -> bool:
        """Whether it has the same bytes."""
        if self.bytes != file.bytes:
            return False
        return self.sha256 == file.sha256 if self.sha256 is not None else self.blob == git_blob(file.source)


def git_blob(path: Path) -> str:
    """The hash under which git keeps a file."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


class Hub:
    """One repository of models. HubRefusedError and HubUnavailableError say what a call ran into."""

    def __init__(self, repository: str) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()  # ours shows
        self.repository = repository
        self._api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))

    def create(self, *, private: bool) -> str:
        """Make the repository unless it is there; its address."""
        with self._asking("create it"):
            return str(self._api.create_repo(self.repository, private=private, exist_ok=True))

    def branches(self) -> set[str]:
        """The names there are."""
        with self._asking("list its branches"):
            return {ref.name for ref in self._api.list_repo_refs(self.repository).branches}

    def create_branch(self, name: str) -> None:
        """A branch that begins with the first commit of all, where nothing but what the hub made is."""
        with self._asking(f"create branch {name}"):
            first = self._api.list_repo_commits(self.repository)[-1].commit_id
            self._api.create_branch(self.repository, branch=name, revision=first, exist_ok=True)

    def files(self, branch: str) -> dict[str, Remote]:
        """What a branch holds, by path."""
        from huggingface_hub import RepoFile

        with self._asking(f"list branch {branch}"):
            tree = list(self._api.list_repo_tree(self.repository, revision=branch, recursive=True))
        return {
            f.path: Remote(f.size, None if f.lfs is None else f.lfs.sha256, f.blob_id)
            for f in tree
            if isinstance(f, RepoFile)
        }

    def released(self) -> dict[str, Any] | None:
        """The release.json of `main`; None if it has none. HubRefusedError: it is not JSON."""
        if RELEASE not in self.files(MAIN):
            return None
        with tempfile.TemporaryDirectory() as scratch:
            with self._asking(f"read {RELEASE}"):
                path = self._api.hf_hub_download(self.repository, RELEASE, revision=MAIN, local_dir=scratch)
            try:
                found = json.loads(Path(path).read_bytes())
            except ValueError as err:
                raise HubRefusedError(f"{self.repository}: its {RELEASE} is not JSON ({err})") from None
        return found if isinstance(found, dict) else {}

    def commit(self, branch: Branch, files: Sequence[Upload], stale: Sequence[str], part: str) -> None:
        """Send files and commit them to a branch, where those at `stale` are deleted. part: behind the message."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[Any] = [CommitOperationAdd(path_in_repo=f.path, path_or_fileobj=f.source) for f in files]
        operations += [CommitOperationDelete(path_in_repo=path) for path in stale]
        with self._asking(f"commit to {branch.name}"), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that tables look like a dataset: here they are metrics
            self._api.create_commit(
                self.repository, operations, commit_message=f"{branch.message}{part}", revision=branch.name
            )

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

        where = f"{self.repository}: the hub was asked to {what}"
        try:
            yield
        except LocalTokenNotFoundError:
            raise HubRefusedError(f"{where}, but there is no token: `hf auth login`, or set HF_TOKEN") from None
        except OfflineModeIsEnabled:
            raise HubRefusedError(f"{where}, but HF_HUB_OFFLINE is set; unset it") from None
        except Exception as err:
            for cause in _causes(err):
                if isinstance(cause, HfHubHTTPError):
                    raise _refusal(where, cause) from None
                if type(cause).__module__.split(".")[0] in ("httpx2", "httpx", "httpcore", "httpcore2"):
                    said = str(cause) or type(cause).__name__
                    raise HubUnavailableError(
                        f"{where} and does not answer ({said}); start the same command again, it goes on"
                    ) from None
            if isinstance(
                err, ValueError
            ):  # what the library says of an answer, or of a file, that is not as it should be
                raise HubRefusedError(f"{where}: {' '.join(str(err).split())[:300]}") from None
            raise


def _causes(err: BaseException | None) -> Iterator[BaseException]:
    while err is not None:
        yield err
        err = err.__cause__


_MENDED = {
    401: "log in with `hf auth login`, or set HF_TOKEN to a token that may write there",
    403: "the token may not do that: use one that may write there",
    404: "it does not exist, or the token may not see it",
}


def _refusal(where: str, err: Any) -> JaxllmError:
    """What an HTTP status means; nothing of the request is repeated, since it holds the token."""
    status = err.response.status_code
    said = " ".join((err.server_message or "").split())[:200]
    answer = f"{where} and answered {status}" + (f" ({said})" if said else "")
    if status == 429 or status >= 500:
        return HubUnavailableError(f"{answer}; start the same command again later, it goes on")
    return HubRefusedError(f"{answer}; {_MENDED.get(status, 'nothing was changed by it')}")
