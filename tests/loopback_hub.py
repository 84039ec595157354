# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""A small Hub on 127.0.0.1 for tests, which the real `huggingface_hub` clients reach through `HF_ENDPOINT`.

It keeps every file in a temporary directory, moves a branch only when a whole commit is in, and injects faults:

    with LoopbackHub() as hub:
        hub.add_token("hf_writer", "user")
        hub.faults.add("POST", r"/commit/", times=2, status=503)
        subprocess.run([sys.executable, "-c", script], env=hub.client_environment(tmp_path, token="hf_writer"))
        assert hub.repo("user/model").files()["config.json"].read() == ...

Clients read the endpoint when they are imported, so they run in a subprocess. Pull requests live at `refs/pr/N`.
Stricter than the real Hub in one point: a model card without YAML front matter is refused, not warned about.
Not there: Xet, multipart uploads, pagination, merging of pull requests, `.gitignore` handling in preupload.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tests.loopback_routes import ROUTES, FileAnswer
from tests.loopback_store import Account, ConnectionCut, HubError, Repo, Storage


BLOCK = 1 << 16


@dataclasses.dataclass
class Fault:
    """What happens to the next `times` requests (None: all) that match, once `after` of them went well.

    Attributes:
        method: HTTP method.
        path: regular expression, searched in the path as sent, with its query.
        status: answered, with `message`, in place of the real answer; nothing is stored.
        cut_after_bytes: the connection is cut after so many bytes of a PUT's or POST's body, or of any other's answer.
        lose_answer: the request is carried out, then the connection is cut.
        callback: called with the request before it is served; may wait, or raise HubError or ConnectionCut.
    """

    method: str
    path: str
    times: int | None = 1
    after: int = 0
    status: int | None = None
    retry_after: int | None = None
    error_code: str | None = None
    message: str = "injected fault"
    cut_after_bytes: int | None = None
    lose_answer: bool = False
    callback: Callable[[Request], None] | None = None
    reached: threading.Event = dataclasses.field(default_factory=threading.Event)
    released: threading.Event = dataclasses.field(default_factory=threading.Event)

    def apply(self, request: Request) -> None:
        """Raise what the request is to meet before it is served, if anything."""
        self.reached.set()
        if self.callback:
            self.callback(request)
        if self.status:
            headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
            raise HubError(self.status, self.message, self.error_code, headers)


class Faults:
    def __init__(self):
        self.planned: list[Fault] = []
        self.lock = threading.Lock()

    def add(self, method: str, path: str, times: int | None = 1, **options) -> Fault:
        """Plan a fault; `options` are the fields of `Fault`."""
        fault = Fault(method, path, times, **options)
        with self.lock:
            self.planned.append(fault)
        return fault

    def hold(self, method: str, path: str) -> Fault:
        """Keep the next matching request waiting until `fault.released` is set, then cut it; it is never carried out.

        `fault.reached` is set on its arrival: the moment to kill the client.
        """

        def wait(_: Request) -> None:
            fault.released.wait()
            raise ConnectionCut

        fault = self.add(method, path, callback=wait)
        return fault

    def take(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.planned:
                if fault.method == method and fault.times != 0 and re.search(fault.path, path):
                    if fault.after:
                        fault.after -= 1
                        continue
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None


@dataclasses.dataclass
class Request:
    """One entry of the request log. `body` is empty for PUT, whose content goes to disk; `status` 0 is no answer."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""
    received: int = 0
    status: int = 0

    @property
    def authorization(self) -> str | None:
        return self.headers.get("authorization")


class Handler(BaseHTTPRequestHandler):
    """One connection: finds the route of each request, injects faults, and writes the answer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60
    hub: LoopbackHub
    request_log: Request

    def log_message(self, format: str, *args) -> None:
        """Keep the test output clean; requests are in `LoopbackHub.requests`."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.request_log = Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
        self.hub.requests.append(self.request_log)
        self.blocks = self._blocks()
        fault = self.hub.faults.take(self.command, self.path)
        try:
            try:
                answer = self._serve(url.path, fault)
            except HubError as error:
                answer = error
            if fault and fault.lose_answer:
                raise ConnectionCut
            self._answer(answer, fault.cut_after_bytes if fault else None)
        except ConnectionCut:
            self.close_connection = True
            with contextlib.suppress(OSError):  # the client may be gone
                self.connection.shutdown(socket.SHUT_RDWR)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _serve(self, path: str, fault: Fault | None):
        if fault and fault.cut_after_bytes is not None and self.command in ("PUT", "POST"):
            while self.request_log.received < fault.cut_after_bytes and next(self.blocks, b""):
                pass
            raise ConnectionCut
        if fault:
            fault.apply(self.request_log)
        for method, pattern, function in ROUTES:
            match = pattern.fullmatch(path)
            if match and method == self.command:
                self.values = {name: value and unquote(value) for name, value in match.groupdict().items()}
                return function(self)
        raise HubError(404, f"the loopback Hub has no {self.command} {path}")

    def _blocks(self) -> Iterator[bytes]:
        """The request's body; the clients always announce its length."""
        left = int(self.headers.get("Content-Length", 0))
        while left:
            block = self.rfile.read(min(left, BLOCK))
            if not block:
                raise ConnectionCut
            self.request_log.received += len(block)
            left -= len(block)
            yield block

    def data(self) -> bytes:
        self.request_log.body += b"".join(self.blocks)
        return self.request_log.body

    def form(self) -> dict:
        """The request's body, JSON or an HTML form."""
        if "json" in self.headers.get("Content-Type", ""):
            return json.loads(self.data())
        return {k: v if k == "paths" else v[0] for k, v in parse_qs(self.data().decode()).items()}

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("1", "true")

    def account(self, required: bool = False, role: str | None = None) -> Account | None:
        """Who asks; None for nobody. Raises HubError 401, or 403 when the token lacks `role`."""
        authorization = self.request_log.authorization
        if authorization is None:
            if required or role:
                raise HubError(401, "Invalid username or password.")
            return None
        account = self.hub.accounts.get(authorization.removeprefix("Bearer "))
        if account is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        if role and account.role != role:
            raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")
        return account

    def repo(self, access: str = "read") -> Repo:
        """The repo of the path, for `access` read, write, or contribute (pull requests by anybody who can read).

        A repo that does not exist and a private one look alike: 401 for nobody, 404 for a stranger.
        """
        account, repo_id = self.account(), self.values["repo_id"]
        repo = self.hub.repos.get((self.values["kind"] or "models", repo_id))
        owner = account is not None and account.owns(repo_id)
        if repo is None or (repo.private and not owner):
            raise HubError(404 if account else 401, "Repository not found", "RepoNotFound")
        if access != "read":
            self.account(role="write")
        ref = self.values.get("revision") or "refs/pr/"
        opens_pull_request = self.flag("create_pr") or ref.startswith("refs/pr/")
        if not owner and not (access == "read" or (access == "contribute" and opens_pull_request)):
            raise HubError(403, f"You don't have write access to {repo_id}")
        return repo

    def _answer(self, answer: object, cut_after: int | None) -> None:
        kept = self.request_log.body
        for block in self.blocks:  # a client reads no answer before it has sent everything
            kept += block if self.command != "PUT" else b""
        self.request_log.body = kept
        if isinstance(answer, FileAnswer):
            self._send_file(answer, cut_after)
            return
        status, headers = (answer.status, answer.headers) if isinstance(answer, HubError) else (200, {})
        content = json.dumps(answer.body if isinstance(answer, HubError) else answer).encode()
        self._send_head(status, {"Content-Type": "application/json", "Content-Length": len(content), **headers})
        if self.command != "HEAD":
            self.wfile.write(content[:cut_after])
        if cut_after is not None:
            raise ConnectionCut

    def _send_head(self, status: int, headers: dict[str, object]) -> None:
        self.request_log.status = status
        self.send_response(status)
        for name, value in {"X-Request-Id": uuid.uuid4().hex, **headers}.items():
            self.send_header(name, " ".join(str(value).encode("ascii", "replace").decode().split()))
        self.end_headers()

    def _send_file(self, answer: FileAnswer, cut_after: int | None) -> None:
        blob, status, start, end = answer.blob, 200, 0, answer.blob.size
        headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": answer.commit, "Accept-Ranges": "bytes"}
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": blob.size}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            status, start, end = 206, int(wanted[1]), min(int(wanted[2] or blob.size) + bool(wanted[2]), blob.size)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{blob.size}"
            if start >= end:
                status, start, end, headers["Content-Range"] = 416, 0, 0, f"bytes */{blob.size}"
        self._send_head(status, {"Content-Length": end - start, **headers})
        if self.command == "HEAD":
            return
        left = end - start if cut_after is None else min(cut_after, end - start)
        with open(blob.file, "rb") as file:
            file.seek(start)
            while left:
                left -= self.wfile.write(file.read(min(left, BLOCK)))
        if cut_after is not None:
            raise ConnectionCut


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: LoopbackHub):
        self.hub = hub
        super().__init__(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))

    def handle_error(self, request, client_address) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, TimeoutError)):
            self.hub.failures.append(error)


class LoopbackHub:
    """The Hub, served while its `with` block runs. A fault of its own is raised at the end of the block.

    Attributes:
        endpoint: `http://127.0.0.1:PORT`.
        faults: what goes wrong; see `Faults.add` and `Faults.hold`.
        requests: every request that arrived, in order.
    """

    def __init__(self):
        self.faults, self.requests, self.failures = Faults(), [], []
        self.accounts: dict[str, Account] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.uploads: dict[str, tuple[str, int]] = {}
        self.lock = threading.Lock()

    def __enter__(self) -> LoopbackHub:
        self.storage = Storage(Path(tempfile.mkdtemp(prefix="loopback_hub_")))
        self._server = _Server(self)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.stop()
        shutil.rmtree(self.storage.folder, ignore_errors=True)
        if self.failures and kind is None:
            raise self.failures[0]

    def stop(self) -> None:
        """Go offline: no new connection is answered, held requests are cut. What was stored can still be read."""
        for fault in self.faults.planned:
            fault.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add_token(self, token: str, name: str, role: str = "write", organizations: tuple[str, ...] = ()) -> None:
        """Let `token` act as user `name` with `role` read or write."""
        self.accounts[token] = Account(name, role, organizations)

    def create_repo(self, repo_id: str, repo_type: str = "model", private: bool = False) -> Repo:
        """Create a repo from the server's side, holding one commit with `.gitattributes`."""
        repo = Repo(self.storage, repo_id, f"{repo_type}s", private, author=repo_id.split("/")[0])
        self.repos[repo.kind, repo_id] = repo
        return repo

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        """Raises KeyError when there is none."""
        return self.repos[f"{repo_type}s", repo_id]

    def matching(self, method: str, path: str) -> list[Request]:
        """The logged requests of `method` whose path, as sent, matches the regular expression."""
        return [request for request in self.requests if request.method == method and re.search(path, request.path)]

    def client_environment(
        self, cache_dir: str | os.PathLike, token: str | None = None, offline: bool = False
    ) -> dict[str, str]:
        """The environment of a client process: this Hub, a cache below `cache_dir`, `token`, nothing of the user's."""
        ours = ("HF_", "HUGGING", "TRANSFORMERS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        switches = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS")
        return {
            **kept,
            **dict.fromkeys(switches, "1"),
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(cache_dir),
            "HF_HUB_CACHE": str(Path(cache_dir) / "hub"),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            **({"HF_TOKEN": token} if token else {}),
            **({"HF_HUB_OFFLINE": "1"} if offline else {}),
        }
