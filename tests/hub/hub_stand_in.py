"""A Hugging Face hub as small as our uploads and downloads need it, in a thread."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class StandIn(ThreadingHTTPServer):
    """Repositories by name, each with one commit; `token`, if set, is asked for."""

    def __init__(self, token: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.created: list[dict[str, Any]] = []
        self.token = token

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.token not in (None, self.headers.get("Authorization", "")[7:]):
            return self._answer(401, {"error": "Invalid username or password."})
        parts = self.path.partition("?")[0].strip("/").split("/")
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            self.server.created.append(wanted)
            name = f"{wanted.get('organization', 'me')}/{wanted['name']}"
            taken = name in self.server.repos
            self.server.repos.setdefault(name, {})
            return self._answer(409 if taken else 200, {"url": f"{self.server.url}/{name}"})
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        name, action = "/".join(parts[2:4]), parts[4]
        if action == "preupload":
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for f in json.loads(body)["files"]]  # fmt: skip
            return self._answer(200, {"files": files})
        assert action == "commit", self.path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                file = line["value"]
                self.server.repos[name][file["path"]] = base64.b64decode(file["content"])
        url = f"{self.server.url}/{name}/commit/{COMMIT}"
        return self._answer(200, {"commitUrl": url, "commitOid": COMMIT, "success": True})

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        api = parts[0] == "api"
        name, rest = "/".join(parts[2:4] if api else parts[:2]), parts[4 if api else 2 :]
        files = self.server.repos.get(name)
        if files is None:
            return self._answer(404, {"error": "none"}, {"X-Error-Code": "RepoNotFound"})
        if rest[1] not in ("main", COMMIT):
            return self._answer(404, {"error": "none"}, {"X-Error-Code": "RevisionNotFound"})
        if rest[0] == "revision":
            siblings = [{"rfilename": file} for file in files]
            return self._answer(200, {"id": name, "sha": COMMIT, "siblings": siblings})
        if rest[0] == "tree":
            tree = [{"type": "file", "path": file, "size": len(data), "oid": _oid(data)}
                    for file, data in files.items()]  # fmt: skip
            return self._answer(200, tree)
        data = files[rest[2]]
        return self._answer(200, data, {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def _answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def stand_in(token: str | None = None) -> Iterator[StandIn]:
    """A hub that is there while this is open."""
    with StandIn(token) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
