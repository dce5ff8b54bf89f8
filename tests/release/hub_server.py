"""A hub for tests: the part of Hugging Face's protocol that publishing and downloading use, strictly.

    python -m tests.release.hub_server PORT        # to try things by hand; the token is 'hf_secret'

It keeps commits, branches and large objects in memory, takes nothing whose hash is not what was announced, refuses a
commit of a large file that was not sent before, and anything without the token; and it can be told to fail.
"""

import base64
import hashlib
import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secret"
Tree = dict[str, str]  # path -> sha256 of the content
LARGE = (".safetensors", ".parquet", ".bin", ".gz", ".zst")


@dataclass
class Repository:
    """Commits as trees, the first of which is what a hub makes; branches by name."""

    private: bool
    commits: list[Tree] = field(default_factory=list)
    branches: dict[str, int] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, tree: Tree, message: str) -> str:
        self.commits.append(tree)
        self.messages.append(message)
        self.branches[branch] = len(self.commits) - 1
        return oid_of(len(self.commits) - 1)


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = "", **more: str) -> None:
        super().__init__(message)
        self.status, self.code, self.more = status, code, more


def oid_of(commit: int) -> str:
    return f"{commit:040x}"


def blob_of(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass
class Hub:
    """What a server holds, and how it is to fail. fail(method, path) -> a status to answer with instead, or None;
    seen(branch, tree) is told of every commit.

    calls: 'METHOD kind' -> how often. puts: sizes of large objects received.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    calls: Counter[str] = field(default_factory=Counter)
    puts: list[int] = field(default_factory=list)
    fail: Callable[[str, str], int | None] = lambda method, path: None
    seen: Callable[[str, Tree], None] = lambda branch, tree: None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def writes(self) -> int:
        """Requests that would change something."""
        return sum(n for call, n in self.calls.items() if call.split()[1] in ("create", "branch", "commit", "put"))

    def tree(self, repository: str, revision: str) -> Tree:
        repo = self.repository(repository)
        if revision in repo.branches:
            return repo.commits[repo.branches[revision]]
        if re.fullmatch(r"[0-9a-f]{40}", revision) and int(revision, 16) < len(repo.commits):
            return repo.commits[int(revision, 16)]
        raise Refusal(404, f"no revision {revision}", "RevisionNotFound")

    def repository(self, name: str) -> Repository:
        if name not in self.repositories:
            raise Refusal(404, f"no repository {name}", "RepoNotFound")
        return self.repositories[name]

    def keep(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self.contents[digest] = data
        return digest

    # ---- calls; each gets the match of its path and the body, and returns JSON -------------------------------------

    def create(self, found: re.Match[str], body: Any) -> Any:
        name = f"{body['organization']}/{body['name']}"
        if name in self.repositories:
            raise Refusal(409, "You already created this model repo", url=f"http://{self.address}/{name}")
        repo = self.repositories[name] = Repository(private=body.get("visibility") == "private")
        repo.commit("main", {".gitattributes": self.keep(b"*.safetensors filter=lfs\n")}, "initial commit")
        return {"url": f"http://{self.address}/{name}", "id": name}

    def refs(self, found: re.Match[str], body: Any) -> Any:
        repo = self.repository(found["repo"])
        named = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": oid_of(c)} for b, c in repo.branches.items()]
        return {"branches": named, "tags": [], "converts": []}

    def history(self, found: re.Match[str], body: Any) -> Any:
        self.tree(found["repo"], unquote(found["revision"]))
        last = self.repository(found["repo"]).branches[unquote(found["revision"])]
        # Linear per branch is enough here: what came first is the last in the list.
        return [
            {"id": oid_of(c), "title": "", "message": "", "date": "2026-01-01T00:00:00.000Z", "authors": []}
            for c in sorted({0, last}, reverse=True)
        ]

    def branch(self, found: re.Match[str], body: Any) -> Any:
        repo, name = self.repository(found["repo"]), unquote(found["revision"])
        if name in repo.branches:
            raise Refusal(409, f"{name} exists")
        self.tree(found["repo"], body["startingPoint"])
        repo.branches[name] = int(body["startingPoint"], 16)
        return {}

    def listing(self, found: re.Match[str], body: Any) -> Any:
        said = []
        for path, digest in sorted(self.tree(found["repo"], unquote(found["revision"])).items()):
            data = self.contents[digest]
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob_of(data)}
            if digest in self.large:
                entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
            said.append(entry)
        return said

    def preupload(self, found: re.Match[str], body: Any) -> Any:
        self.tree(found["repo"], unquote(found["revision"]))
        answers = []
        for file in body["files"]:
            big = file["path"].endswith(LARGE) or file["size"] > 100_000
            answers.append(
                {"path": file["path"], "uploadMode": "lfs" if big else "regular", "shouldIgnore": False, "oid": None}
            )
        return {"files": answers}

    def batch(self, found: re.Match[str], body: Any) -> Any:
        base = f"http://{self.address}/large"
        objects = []
        for one in body["objects"]:
            said = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.large:
                verify = {"href": f"http://{self.address}/verify"}
                said["actions"] = {"upload": {"href": f"{base}/{one['oid']}"}, "verify": verify}
            objects.append(said)
        return {"transfer": "basic", "objects": objects}

    def put(self, found: re.Match[str], body: bytes) -> Any:
        if hashlib.sha256(body).hexdigest() != found["oid"]:
            raise Refusal(400, "the bytes do not hash to what was announced")
        self.large.add(self.keep(body))
        self.puts.append(len(body))
        return {}

    def verify(self, found: re.Match[str], body: Any) -> Any:
        if body["oid"] not in self.large or len(self.contents[body["oid"]]) != body["size"]:
            raise Refusal(422, "there is no such object")
        return {}

    def yaml(self, found: re.Match[str], body: Any) -> Any:
        return {"errors": [], "warnings": []}

    def commit(self, found: re.Match[str], body: bytes) -> Any:
        branch = unquote(found["revision"])
        tree, lines = dict(self.tree(found["repo"], branch)), [json.loads(line) for line in body.splitlines()]
        if lines[0]["key"] != "header" or branch not in self.repository(found["repo"]).branches:
            raise Refusal(400, "a commit begins with its header and goes to a branch")
        for line in lines[1:]:
            value = line["value"]
            match line["key"]:
                case "file":
                    tree[value["path"]] = self.keep(base64.b64decode(value["content"], validate=True))
                case "lfsFile":
                    if value["oid"] not in self.large:
                        raise Refusal(400, f"{value['path']}: its object was not sent")
                    tree[value["path"]] = value["oid"]
                case "deletedFile":
                    del tree[value["path"]]
                case other:
                    raise Refusal(400, f"{other}: not spoken here")
        oid = self.repository(found["repo"]).commit(branch, tree, lines[0]["value"]["summary"])
        self.seen(branch, tree)
        return {"commitUrl": f"http://{self.address}/{found['repo']}/commit/{oid}", "commitOid": oid}

    def info(self, found: re.Match[str], body: Any) -> Any:
        revision = unquote(found["revision"] or "main")
        tree, repo = self.tree(found["repo"], revision), self.repository(found["repo"])
        at = repo.branches.get(revision)
        oid = revision if at is None else oid_of(at)
        return {"id": found["repo"], "sha": oid, "siblings": [{"rfilename": path} for path in sorted(tree)], "tags": []}

    address: str = ""


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_AT = r"(?P<revision>[^/]+)"
# kind, method, path; 'bytes' where the body is not JSON.
ROUTES: list[tuple[str, str, str, Callable[..., Any]]] = [
    ("create", "POST", r"/api/repos/create", Hub.create),
    ("refs", "GET", rf"/api/models/{_REPO}/refs", Hub.refs),
    ("history", "GET", rf"/api/models/{_REPO}/commits/{_AT}", Hub.history),
    ("branch", "POST", rf"/api/models/{_REPO}/branch/{_AT}", Hub.branch),
    ("listing", "GET", rf"/api/models/{_REPO}/tree/{_AT}", Hub.listing),
    ("preupload", "POST", rf"/api/models/{_REPO}/preupload/{_AT}", Hub.preupload),
    ("commit", "POST", rf"/api/models/{_REPO}/commit/{_AT}", Hub.commit),
    ("info", "GET", rf"/api/models/{_REPO}(/revision/{_AT})?", Hub.info),
    ("batch", "POST", rf"/{_REPO}\.git/info/lfs/objects/batch", Hub.batch),
    ("verify", "POST", r"/verify", Hub.verify),
    ("yaml", "POST", r"/api/validate-yaml", Hub.yaml),
    ("put", "PUT", r"/large/(?P<oid>[0-9a-f]{64})", Hub.put),
]
_RESOLVE = re.compile(rf"/{_REPO}/resolve/{_AT}/(?P<path>.+)")


class Server:
    """A hub that listens on a port of this machine, while the context is open."""

    def __init__(self, port: int = 0) -> None:
        hub = self.hub = Hub()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do(self) -> None:
                _answer(hub, self)

            do_GET = do_HEAD = do_POST = do_PUT = do

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        hub.address = f"127.0.0.1:{self._server.server_address[1]}"
        self.endpoint = f"http://{hub.address}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _body(request: BaseHTTPRequestHandler) -> bytes:
    if request.headers.get("Transfer-Encoding", "").lower() == "chunked":
        data = b""
        while size := int(request.rfile.readline(), 16):
            data += request.rfile.read(size)
            request.rfile.readline()
        request.rfile.readline()
        return data
    return request.rfile.read(int(request.headers.get("Content-Length", 0)))


def _answer(hub: Hub, request: BaseHTTPRequestHandler) -> None:
    body, path, method = _body(request), urlsplit(request.path).path, request.command
    extra: dict[str, str] = {}
    with hub.lock:
        try:
            if (status := hub.fail(method, path)) is not None:
                raise Refusal(status, "told to")
            if not path.startswith("/large/") and request.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise Refusal(401, "Invalid username or password.")
            if found := _RESOLVE.fullmatch(path):
                data, extra = _resolved(hub, found)
            else:
                kind, found, call = next(
                    (k, m, c) for k, verb, r, c in ROUTES if verb == method and (m := re.fullmatch(r, path))
                )
                hub.calls[f"{method} {kind}"] += 1
                given: Any = body if kind in ("put", "commit") else json.loads(body or b"null")
                data = json.dumps(call(hub, found, given)).encode()
            status = 200
        except StopIteration:
            status, data = 501, json.dumps({"error": f"{method} {path} is not spoken here"}).encode()
        except Refusal as err:
            status, data = err.status, json.dumps({"error": str(err), **err.more}).encode()
            extra = {"X-Error-Message": str(err)} | ({"X-Error-Code": err.code} if err.code else {})
    request.send_response(status)
    for name, value in extra.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    if method != "HEAD":
        request.wfile.write(data)


def _resolved(hub: Hub, found: re.Match[str]) -> tuple[bytes, dict[str, str]]:
    revision, path = unquote(found["revision"]), unquote(found["path"])
    tree, repo = hub.tree(found["repo"], revision), hub.repository(found["repo"])
    if path not in tree:
        raise Refusal(404, f"no {path}", "EntryNotFound")
    digest, at = tree[path], repo.branches.get(revision)
    data = hub.contents[digest]
    etag = digest if digest in hub.large else blob_of(data)
    return data, {"ETag": f'"{etag}"', "X-Repo-Commit": revision if at is None else oid_of(at)}


if __name__ == "__main__":
    with Server(int(sys.argv[1])) as server:
        print(f"HF_ENDPOINT={server.endpoint} HF_TOKEN={TOKEN} HF_HUB_DISABLE_XET=1", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print(json.dumps(server.hub.calls))
