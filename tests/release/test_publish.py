"""A release published to a strict hub, downloaded and verified; killed on the way, refused, and sent again."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jaxllm.cli import app as commands
from jaxllm.core.errors import EXIT_DONE, EXIT_SAVED_START_AGAIN, CheckFailed, ConfigError, RunError
from jaxllm.release.build import build_release
from jaxllm.release.hub import HubRefusedError, HubUnavailableError
from jaxllm.release.layout import RELEASE, read_release
from jaxllm.release.licences import licence_of
from jaxllm.release.publish import Published, planned, publish
from jaxllm.release.publish_plan import Upload, commits
from jaxllm.release.verify import verify_release
from tests.release.hub_server import TOKEN, Server, Tree
from tests.trained import KEPT, golden, trained

pytestmark = pytest.mark.slow

REPOSITORY = "lab/golden"
BRANCHES = {"main", "step8-tokens8192", "step16-tokens16384"}


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release of 8 steps."""
    place = tmp_path_factory.mktemp("publish")
    folder = trained(*golden(place, KEPT), stop_at=8)
    build_release(folder, place / "early", licence_of("Apache-2.0", None, None))
    return place / "early"


@pytest.fixture(scope="module")
def release(early: Path) -> Path:
    """That of 16 steps of the same run."""
    place = early.parent
    folder = trained(*golden(place, KEPT), stop_at=16)
    build_release(folder, place / "release", licence_of("Apache-2.0", None, None), extras=["optimizer"])
    return place / "release"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    _http.close_session()
    with Server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server
    _http.close_session()


def sent(folder: Path, **how: Any) -> Published:
    return publish(planned(folder, REPOSITORY, private=True), folder, **how)


def downloaded(server: Server, place: Path, revision: str = "main") -> Path:
    from huggingface_hub import snapshot_download

    snapshot_download(REPOSITORY, revision=revision, local_dir=place, endpoint=server.endpoint, token=TOKEN)
    return place


def test_what_is_downloaded_is_the_release_and_every_branch_a_model(
    release: Path, server: Server, tmp_path: Path
) -> None:
    done = sent(release)
    repo = server.hub.repositories[REPOSITORY]
    assert repo.private and set(repo.branches) == BRANCHES and done.there == 0
    got = downloaded(server, tmp_path / "got")
    assert all(f.holds is not False for f in verify_release(got, samples=2, seed=0))
    assert (got / RELEASE).read_bytes() == (release / RELEASE).read_bytes()
    for entry in read_release(release).checkpoints:
        model = downloaded(server, tmp_path / entry.branch, entry.branch)
        ours = release / entry.folder
        for path in (p for p in ours.rglob("*") if p.is_file()):
            there = path.relative_to(ours).as_posix().removeprefix("hf/")
            assert (model / there).read_bytes() == path.read_bytes(), there
        assert (model / "LICENSE").is_file() and (model / "config.json").is_file() and not (model / RELEASE).exists()
    assert any("step 16, state" in message for message in repo.messages)
    again = sent(release)
    assert (again.sent, again.commits) == (0, 0) and again.there == done.sent


def test_large_files_that_branches_share_are_sent_once(release: Path, server: Server) -> None:
    sent(release)
    unique = {f.sha256 for f in read_release(release).files if f.sha256 in server.hub.large}
    assert len(server.hub.puts) == len(unique) > 2


def test_killed_it_goes_on_with_what_is_missing(
    release: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off in the midst of the large files of the second branch; small commits, so that some stand."""
    monkeypatch.setattr("jaxllm.release.publish_plan.COMMIT_FILES", 4)
    puts = 0

    def fail(method: str, path: str) -> int | None:
        nonlocal puts
        puts += method == "PUT"
        return 403 if method == "PUT" and puts > 5 else None

    server.hub.fail = fail
    with pytest.raises(HubRefusedError, match="commit to step16-tokens16384 and answered 403"):
        sent(release)
    before = len(server.hub.puts)
    assert before == 5 and "main" in server.hub.repositories[REPOSITORY].branches
    server.hub.fail = lambda method, path: None
    done = sent(release)
    assert done.there > 0
    assert len(server.hub.puts) == len(server.hub.large), "no object is sent a second time"
    assert len(server.hub.puts) > before
    got = downloaded(server, tmp_path / "got")
    assert all(f.holds is not False for f in verify_release(got, samples=0, seed=0))


def test_a_later_release_of_the_run_takes_the_place_of_an_earlier_one(
    early: Path, release: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent(early)
    monkeypatch.setattr("jaxllm.release.publish_plan.COMMIT_FILES", 30)
    whole: list[bool] = []

    def seen(branch: str, tree: Tree) -> None:
        if branch == "main":
            whole.append(RELEASE in tree)

    server.hub.seen = seen
    sent(release)
    assert whole[-1] and not any(whole[:-1]) and len(whole) > 1, "no release.json while something is missing"
    got = downloaded(server, tmp_path / "got")
    assert all(f.holds is not False for f in verify_release(got, samples=0, seed=0))
    with pytest.raises(RunError, match="holds the release of 16 steps of this run, this one is of 8"):
        sent(early)
    sent(early, replace=True)
    assert not any("step16" in path for path in server.hub.tree(REPOSITORY, "main"))


def test_what_somebody_took_away_is_sent_again(
    release: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a release that is there, in more than one commit: its release.json stays."""
    sent(release)
    repo = server.hub.repositories[REPOSITORY]
    repo.commits[repo.branches["main"]] = {
        path: digest
        for path, digest in server.hub.tree(REPOSITORY, "main").items()
        if path in (RELEASE, ".gitattributes") or path.startswith("checkpoints")
    }
    monkeypatch.setattr("jaxllm.release.publish_plan.COMMIT_FILES", 4)
    assert sent(release).commits > 1
    got = downloaded(server, tmp_path / "got")
    assert all(f.holds is not False for f in verify_release(got, samples=0, seed=0))


def test_a_release_of_another_run_is_not_written_over(release: Path, server: Server, tmp_path: Path) -> None:
    sent(release)
    tree = server.hub.repositories[REPOSITORY].commits[-1]
    other = json.loads(server.hub.contents[tree[RELEASE]])
    other["run"]["identity"], other["run"]["name"] = "0" * 64, "theirs"
    tree[RELEASE] = server.hub.keep(json.dumps(other).encode())
    writes = server.hub.writes
    with pytest.raises(RunError, match="holds a release of another run, 'theirs'"):
        sent(release)
    assert server.hub.writes == writes + 1, "nothing but the repository was asked for"


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (401, HubRefusedError, "log in with `hf auth login`"),
        (403, HubRefusedError, "use one that may write there"),
        (404, HubRefusedError, "it does not exist, or the token may not see it"),
        (429, HubUnavailableError, "start the same command again later"),
        (503, HubUnavailableError, "start the same command again later"),
    ],
)
def test_what_the_hub_answers_is_said_in_a_line(
    status: int, error: type[Exception], words: str, release: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.hub.fail = lambda method, path: status if path.endswith("/refs") else None
    with pytest.raises(error) as said:
        sent(release)
    assert words in str(said.value) and "\n" not in str(said.value) and TOKEN not in str(said.value)


def test_a_hub_that_is_not_there(release: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = CliRunner().invoke(commands, ["publish", str(release), "--to", REPOSITORY])
    assert isinstance(done.exception, HubUnavailableError) and done.exception.exit_code == EXIT_SAVED_START_AGAIN
    assert "does not answer" in str(done.exception) and TOKEN not in done.output


def test_a_dry_run_lists_the_calls_and_makes_none(
    release: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    done = CliRunner().invoke(commands, ["publish", str(release), "--to", REPOSITORY, "--dry-run"])
    assert done.exit_code == EXIT_DONE and not server.hub.calls
    said = done.stdout.splitlines()
    assert said[0].startswith(f"create the public repository {REPOSITORY}")
    assert [line.split()[2] for line in said if line.startswith("create branch")] == sorted(
        BRANCHES - {"main"}, key=len
    )
    assert said[-1].startswith("commit to main: ")


def test_nothing_that_is_damaged_or_nameless_is_sent(release: Path, server: Server, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(release, tmp_path / "release"))
    path = copy / "README.md"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    with pytest.raises(CheckFailed, match=r"README\.md: its sha256 is"):
        sent(copy)
    path.write_text("short")
    with pytest.raises(CheckFailed, match=r"README\.md: it is not there, or not of the listed size"):
        sent(copy)
    (copy / RELEASE).unlink()
    with pytest.raises(RunError, match="is no release"):
        sent(copy)
    for name in ("golden", "lab/a/b", "lab/../x", "-lab/x"):
        with pytest.raises(ConfigError, match="write ORG/NAME"):
            planned(release, name, private=False)
    assert not server.hub.calls


def test_commits_are_of_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxllm.release.publish_plan.COMMIT_FILES", 3)
    monkeypatch.setattr("jaxllm.release.publish_plan.COMMIT_BYTES", 10)
    sizes = (4, 4, 4, 20, 1, 1, 1, 1)
    files = tuple(Upload(source=Path(), path=str(i), sha256="", bytes=n) for i, n in enumerate(sizes))
    assert [[f.bytes for f in c] for c in commits(files)] == [[4, 4], [4], [20], [1, 1, 1], [1]]
    assert list(commits(())) == []
