"""A W&B server as small as our runs, their later upload and the dashboard need it, in a thread.

It keeps what a real one shows: of a run its configuration, history, summary, files and end; of an
artifact its manifest and who uses it; alerts and saved views. As with the real one, a client
resumes from what is kept, and content that a collection has already makes no new version of it.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

ENTITY = "tester"
KEY = "0123456789" * 4
_FILES = "/files-of/"


@dataclass
class Run:
    """What the server knows of a run."""

    id: str
    project: str
    name: str | None = None
    group: str | None = None
    job_type: str | None = None
    notes: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)
    """Of each file that is streamed, such as wandb-history.jsonl."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Those that are uploaded whole."""
    exit_code: int | None = None
    used: list[str] = field(default_factory=list)
    """Ids of the artifacts that it used."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """What `log` was called with, one entry per step."""
        return [json.loads(line) for line in self.lines.get("wandb-history.jsonl", ())]

    @property
    def summary(self) -> dict[str, Any]:
        lines = self.lines.get("wandb-summary.json")
        return json.loads(lines[-1]) if lines else {}

    def steps_of(self, metric: str) -> list[int]:
        """The steps at which a metric was logged, in the order of the server's lines."""
        return [line["_step"] for line in self.history if metric in line]


@dataclass
class Artifact:
    """One version of a collection."""

    id: str
    name: str
    type: str
    aliases: list[str]
    metadata: dict[str, Any]
    creator: str | None
    """The run that logged it."""
    digest: str
    manifest: dict[str, Any] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    """Files that were uploaded; references are in the manifest alone."""
    committed: bool = False


class StandIn(ThreadingHTTPServer):
    """The server, and what it can be made to suffer from."""

    daemon_threads = True  # those of hung answers

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, Run] = {}
        self.artifacts: list[Artifact] = []
        self.alerts: list[dict[str, Any]] = []
        self.views: list[dict[str, Any]] = []
        self.requests: list[str] = []
        """Names of the GraphQL operations, and paths of everything else."""
        self.unknown: set[str] = set()
        """Operations that it has no answer to."""
        self.delay = 0.0
        """Seconds before each answer."""
        self.broken = False
        """Answer everything with status 500."""
        self.answers = threading.Event()
        """Cleared: requests are accepted and never answered."""
        self.answers.set()
        self.lock = threading.RLock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in mid-sentence is no error here."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which W&B finds it and is logged in."""
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": KEY,
            "WANDB_ERROR_REPORTING": "false",
        }

    def go(self) -> None:
        """Be gone: connections are refused from now on."""
        self.shutdown()
        self.server_close()

    def until(self, condition: Callable[[], bool], seconds: float = 30.0) -> bool:
        """Wait for something to have arrived here."""
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            time.sleep(0.02)
        return condition()


class _Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self._body()
        if self.path.endswith("/file_stream"):
            return self._serve(self.path, lambda: self._stream(json.loads(body)))
        if self.path != "/graphql":
            self.server.unknown.add(self.path)
            return self._reply(404, {})
        asked = json.loads(body)
        found = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
        name = found[1] if found else "unnamed"
        return self._serve(name, lambda: self._graphql(name, asked.get("variables") or {}))

    def do_PUT(self) -> None:
        body = self._body()
        self._serve("upload", lambda: self._store(body))

    def do_GET(self) -> None:
        self._serve(self.path, dict)

    def _serve(self, what: str, answer: Callable[[], Any]) -> None:
        self.server.requests.append(what)
        self.server.answers.wait()
        time.sleep(self.server.delay)
        if self.server.broken:
            return self._reply(500, {"error": "this server is broken"})
        with self.server.lock:
            found = answer()
        return self._reply(200, found)

    def _graphql(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        operation = getattr(self, f"_{name}", None)
        if operation is None:
            self.server.unknown.add(name)
            return {"errors": [{"message": f"{name}: this server does not know it"}]}
        return {"data": operation(given)}

    # Who am I, what can you do

    def _Viewer(self, given: dict[str, Any]) -> Any:
        viewer = {"id": "VXNlcjox", "entity": ENTITY, "username": ENTITY, "flags": "{}",
                  "email": "tester@example.com", "name": "Tester", "admin": False,
                  "deletedAt": None, "apiKeys": {"edges": []}, "teams": {"edges": []}}  # fmt: skip
        return {"viewer": viewer}

    _GetDefaultEntity = _Viewer

    def _ServerFeaturesQuery(self, given: dict[str, Any]) -> Any:
        return {"serverInfo": {"features": []}}

    def _OrganizationCoreWeaveOrganizationID(self, given: dict[str, Any]) -> Any:
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def _XXHashDigestsEnabled(self, given: dict[str, Any]) -> Any:
        return {"entity": {"xxhashDigestsEnabled": False}}

    # Runs

    def _UpsertBucket(self, given: dict[str, Any]) -> Any:
        new = given["name"] not in self.server.runs
        run = self.server.runs.setdefault(given["name"], Run(given["name"], given["project"] or ""))
        for ours, theirs in (("name", "displayName"), ("group", "groupName"), ("tags", "tags"),
                             ("job_type", "jobType"), ("notes", "notes")):  # fmt: skip
            if given.get(theirs) is not None:
                setattr(run, ours, given[theirs])
        config = json.loads(given.get("config") or "{}")
        run.config |= {key: entry["value"] for key, entry in config.items()}
        return {"upsertBucket": {"bucket": self._bucket(run), "inserted": new}}

    def _RunResumeStatus(self, given: dict[str, Any]) -> Any:
        run = self.server.runs.get(given["name"])
        return {"model": {**self._project(given["project"]), "bucket": run and self._bucket(run)}}

    def _bucket(self, run: Run) -> dict[str, Any]:
        lines = {k: run.lines.get(f"wandb-{k}.jsonl", []) for k in ("history", "events")}
        return {
            "id": f"run-{run.id}",
            "name": run.id,
            "displayName": run.name or run.id,
            "description": "",
            "notes": run.notes,
            "tags": run.tags,
            "config": json.dumps({k: {"value": v} for k, v in run.config.items()}),
            "wandbConfig": json.dumps({"t": 1}),
            "sweepName": None,
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(lines["history"]),
            "eventsLineCount": len(lines["events"]),
            "logLineCount": 0,
            "historyTail": json.dumps(lines["history"][-1:]),
            "eventsTail": json.dumps(lines["events"][-1:]),
            "project": self._project(run.project),
        }

    @staticmethod
    def _project(name: str) -> dict[str, Any]:
        return {"id": f"project-{name}", "name": name, "entity": {"id": "e", "name": ENTITY}}

    def _stream(self, sent: dict[str, Any]) -> dict[str, Any]:
        run = self.server.runs[self.path.split("/")[4]]
        for name, chunk in (sent.get("files") or {}).items():
            lines = run.lines.setdefault(name, [])
            lines[chunk["offset"] :] = chunk["content"]
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]
        return {}

    def _CreateRunFiles(self, given: dict[str, Any]) -> Any:
        files = [
            {"name": name, "uploadUrl": f"{self.server.url}{_FILES}run/{given['run']}/{name}"}
            for name in given["files"]
        ]
        found = {"runID": f"run-{given['run']}", "uploadHeaders": [], "files": files}
        return {"createRunFiles": found}

    def _store(self, body: bytes) -> dict[str, Any]:
        kind, owner, name = unquote(self.path).removeprefix(_FILES).split("/", 2)
        if kind == "run":
            self.server.runs[owner].files[name] = body
        elif kind == "manifest":
            self._artifact(owner).manifest = json.loads(body)
        else:
            self._artifact(owner).contents[name] = body
        return {}

    def _NotifyScriptableRunAlert(self, given: dict[str, Any]) -> Any:
        self.server.alerts.append(given)
        return {"notifyScriptableRunAlert": {"success": True}}

    # Artifacts

    def _artifact(self, number: str) -> Artifact:
        return next(one for one in self.server.artifacts if one.id == number)

    def _ArtifactType(self, given: dict[str, Any]) -> Any:
        name = given["name"].partition(":")[0]
        found = [one for one in self.server.artifacts if one.name == name]
        kind = {"artifactType": {"name": found[-1].type}} if found else None
        return {"project": {"artifact": kind}}

    def _FetchArtifactDigestAlgorithm(self, given: dict[str, Any]) -> Any:
        return {"project": {"artifactType": None}}

    def _CreateArtifact(self, given: dict[str, Any]) -> Any:
        wanted = given["input"]
        name, digest = wanted["artifactCollectionName"], wanted["digest"]
        same = [a for a in self.server.artifacts if (a.name, a.digest) == (name, digest)]
        artifact = (
            same[0]
            if same
            else Artifact(
                id=f"artifact{len(self.server.artifacts)}",
                name=name,
                type=wanted["artifactTypeName"],
                aliases=[],
                metadata=json.loads(wanted.get("metadata") or "{}"),
                creator=wanted.get("runName"),
                digest=digest,
            )
        )
        if not same:
            self.server.artifacts.append(artifact)
        artifact.aliases += [alias["alias"] for alias in wanted.get("aliases") or ()]
        sequence = {"latestArtifact": None, "id": "s", "name": artifact.name}
        state = "COMMITTED" if artifact.committed else "PENDING"
        made = {"id": artifact.id, "state": state, "artifactSequence": sequence}
        return {"createArtifact": {"artifact": made}}

    def _CreateArtifactManifest(self, given: dict[str, Any]) -> Any:
        owner = given["artifactID"]
        file = {"id": "f", "uploadUrl": f"{self.server.url}{_FILES}manifest/{owner}/manifest",
                "uploadHeaders": []}  # fmt: skip
        return {"createArtifactManifest": {"artifactManifest": {"id": owner, "file": file}}}

    def _CreateArtifactFiles(self, given: dict[str, Any]) -> Any:
        edges = []
        for wanted in given["input"]["artifactFiles"]:
            owner, name = wanted["artifactID"], wanted["name"]
            url = f"{self.server.url}{_FILES}artifact/{owner}/{name}"
            node = {"storagePath": name, "uploadUrl": url, "uploadHeaders": [],
                    "uploadMultipartUrls": None, "artifact": {"id": owner}}  # fmt: skip
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, given: dict[str, Any]) -> Any:
        artifact = self._artifact(given["artifactID"])
        artifact.committed = True
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": "d"}}}

    def _ArtifactByID(self, given: dict[str, Any]) -> Any:
        artifact = self._artifact(given["id"])
        sequence = {"__typename": "ArtifactSequence", "name": artifact.name, "project": None}
        return {
            "artifact": {
                **dict.fromkeys(("description", "historyStep", "commitHash", "updatedAt")),
                **dict.fromkeys(("versionIndex", "ttlDurationSeconds", "size", "fileCount"), 0),
                "__typename": "Artifact",
                "id": artifact.id,
                "artifactSequence": sequence,
                "artifactType": {"name": artifact.type},
                "metadata": json.dumps(artifact.metadata),
                "ttlIsInherited": True,
                "tags": [],
                "aliases": [],
                "state": "COMMITTED",
                "digest": artifact.digest,
                "createdAt": "2026-01-01T00:00:00Z",
            }
        }

    def _UseArtifact(self, given: dict[str, Any]) -> Any:
        wanted = given["input"]
        self.server.runs[wanted["runName"]].used.append(wanted["artifactID"])
        return {"useArtifact": {"artifact": {"id": wanted["artifactID"]}}}

    # Views

    def _UpsertView2(self, given: dict[str, Any]) -> Any:
        self.server.views.append(given)
        return {"upsertView": {"view": {"id": "v", "name": given["name"]}, "inserted": True}}

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(parts)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _reply(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        with suppress(ConnectionError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """A server that is there while this is open."""
    with StandIn() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.answers.set()
            server.shutdown()
            thread.join()
