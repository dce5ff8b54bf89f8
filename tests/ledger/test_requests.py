"""Requests as files: filed, taken, answered, withdrawn; and what anybody might put there instead."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from jaxllm.core.config import encode
from jaxllm.core.errors import ConfigError, RunError
from jaxllm.ledger import requests
from jaxllm.ledger.requests import Mailbox, Rollback, SetAsideError, Skip

SKIP = Skip(steps=(3, 4), defer=False, why="a look at it")


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / requests.FOLDER).iterdir() if p.is_file())


@pytest.mark.parametrize("asked", [SKIP, Rollback(to=8, data="defer", steps=None, why="")])
def test_a_request_goes_from_state_to_state(asked: Any, tmp_path: Path) -> None:
    request = requests.file(tmp_path, asked)
    assert names(tmp_path) == [f"{request.id}.json"] and requests.waiting(tmp_path) == [request.id]
    assert requests.take(tmp_path, request.id) == request and request.asked == asked
    assert names(tmp_path) == [f"{request.id}.taken"] and requests.answered(tmp_path, request.id) is None
    assert not requests.withdraw(tmp_path, request.id), "it is being carried out"
    assert requests.take(tmp_path, request.id) == request, "who took it was killed"
    requests.answer(tmp_path, request.id, event=7)
    assert requests.waiting(tmp_path) == []
    said = requests.answered(tmp_path, request.id)
    assert said is not None and (said.event, said.refused) == (7, None)
    requests.forget(tmp_path, request.id)
    assert names(tmp_path) == []


def test_a_request_that_was_withdrawn_is_not_taken(tmp_path: Path) -> None:
    request = requests.file(tmp_path, SKIP)
    found = requests.waiting(tmp_path)
    assert requests.withdraw(tmp_path, request.id)
    assert [requests.take(tmp_path, name) for name in found] == [None] and names(tmp_path) == []


def test_requests_come_in_the_order_in_which_they_were_filed(tmp_path: Path) -> None:
    filed = [requests.file(tmp_path, SKIP).id for _ in range(5)]
    assert requests.waiting(tmp_path) == filed


@pytest.mark.parametrize(
    "fields", [{"steps": (4, 3)}, {"steps": (0, 3)}, {"why": "two\nlines"}, {"why": "x" * 501}, {"steps": (1, 10**16)}]
)
def test_what_makes_no_sense_cannot_be_filed(fields: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        Skip(**{"steps": (3, 4), "defer": False, "why": "", **fields})


def _changed(request: Any, **fields: Any) -> bytes:
    return json.dumps(encode(request) | fields).encode()


BAD: dict[str, Any] = {
    "no JSON": lambda r: b"{",
    "not UTF-8": lambda r: b'{"id": "\xff"}',
    "nested": lambda r: b"[" * 10_000,
    "a number too long": lambda r: b'{"pid": ' + b"9" * 5000 + b"}",
    "another schema": lambda r: _changed(r, schema=2),
    "a field more": lambda r: _changed(r, run="/etc"),
    "a type": lambda r: _changed(r, pid="1"),
    "another id": lambda r: _changed(r, id="20260101T000000000000-00000000"),
    "an id that is a path": lambda r: _changed(r, id="../../journal"),
    "an unknown kind": lambda r: _changed(r, asked={"kind": "Delete"}),
    "steps the wrong way": lambda r: _changed(r, asked=encode(SKIP) | {"steps": [4, 3]}),
    "half a character": lambda r: _changed(r, asked=encode(SKIP) | {"why": "\ud800"}),
    "a terminal's code": lambda r: _changed(r, user="\x1b[2J"),
    "too large": lambda r: _changed(r, asked=encode(SKIP) | {"why": "x" * 20_000}),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_request_is_set_aside_with_a_reason_and_answered(what: str, tmp_path: Path) -> None:
    request = requests.file(tmp_path, SKIP)
    (tmp_path / "requests" / f"{request.id}.json").write_bytes(BAD[what](request))
    with pytest.raises(SetAsideError, match="is no request"):
        requests.take(tmp_path, request.id)
    assert requests.waiting(tmp_path) == []
    assert (tmp_path / "requests" / "aside" / request.id).read_bytes() == BAD[what](request)
    said = requests.answered(tmp_path, request.id)
    assert said is not None and said.refused is not None
    assert (tmp_path / "requests" / "aside" / f"{request.id}.why").read_text().strip() == said.refused
    assert len(said.refused) < 500 and "\n" not in said.refused


def test_neither_links_nor_pipes_nor_folders_are_read(tmp_path: Path) -> None:
    request = requests.file(tmp_path, SKIP)
    place = tmp_path / "requests"
    (place / f"{request.id}.json").rename(tmp_path / "elsewhere")
    (place / f"{request.id}.json").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(place / "pipe.json")
    (place / "folder.json").mkdir()
    (place / "no id.json").write_bytes((tmp_path / "elsewhere").read_bytes())
    for name in (found := requests.waiting(tmp_path)):
        with pytest.raises(SetAsideError):
            requests.take(tmp_path, name)
    assert len(found) == 4 and requests.waiting(tmp_path) == []
    # Whoever puts it there again hears it again, and what lies aside stays.
    (place / "folder.json").mkdir()
    with pytest.raises(SetAsideError):
        requests.take(tmp_path, "folder")
    assert (place / "aside" / "folder").is_dir() and (place / "aside" / "folder-2").is_dir()


def test_an_answer_that_is_none_is_said(tmp_path: Path) -> None:
    request = requests.file(tmp_path, SKIP)
    (tmp_path / "requests" / f"{request.id}.answer").write_text('{"schema": 1, "event": null, "refused": null}')
    with pytest.raises(RunError, match="is no answer"):
        requests.answered(tmp_path, request.id)


def test_the_mailbox_looks_now_and_then_and_keeps_what_it_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(requests.time, "monotonic", lambda: now[0])
    mail = Mailbox(tmp_path, lambda text: None, every=1.0)
    looks: list[float] = []
    monkeypatch.setattr(requests, "waiting", lambda folder: looks.append(now[0]) or os.listdir(folder / "requests"))
    assert not any(mail.waiting() for _ in range(9)) and looks == [100.0]
    request = requests.file(tmp_path, SKIP)
    now[0] = 100.9
    assert not mail.waiting()
    now[0] = 101.0
    assert mail.waiting() and mail.waiting() and looks == [100.0, 101.0]
    requests.close(tmp_path, request.id)
    assert mail.waiting(), "until it was dealt with"
    mail.emptied()
    now[0] = 102.0
    assert not mail.waiting()


def test_a_mailbox_that_cannot_be_read_is_said_once_and_stops_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    mail = Mailbox(tmp_path, said.append, every=0.0)
    (tmp_path / "requests").rmdir()
    assert not mail.waiting() and said == [], "nothing was ever asked of it"
    (tmp_path / "requests").write_text("")
    assert not mail.waiting() and not mail.waiting()
    assert len(said) == 1 and "nothing can be asked" in said[0]


def test_answers_that_nobody_fetched_go_after_a_day(tmp_path: Path) -> None:
    old, new = (requests.file(tmp_path, SKIP) for _ in range(2))
    for request in (old, new):
        requests.answer(tmp_path, request.id, refused="no")
    yesterday = time.time() - 2 * 86_400
    os.utime(tmp_path / "requests" / f"{old.id}.answer", (yesterday, yesterday))
    waits = requests.file(tmp_path, SKIP)
    os.utime(tmp_path / "requests" / f"{waits.id}.json", (yesterday, yesterday))
    Mailbox(tmp_path, lambda text: None)
    assert names(tmp_path) == sorted([f"{new.id}.answer", f"{waits.id}.json"])
