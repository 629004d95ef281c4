"""A store that fails on demand: a proxy in front of the real S3, for tests.

Belongs here: the faults. Does not belong here: what the platform does about them (the tests of each part).

Requests pass as the client signed them, its Host header included, so the real store judges every signature.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from dash_pipeline.settings import Settings

_CHUNK = 64 << 10
_UPSTREAM_S = 60
# Closing a socket that lingers for no time resets the connection instead of ending it in order.
_RESET = struct.pack("ii", 1, 0)
# What MinIO answers when its disks are full.
_FULL = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>XMinioStorageFull</Code>'
    b"<Message>Storage backend has reached its minimum free drive threshold.</Message></Error>"
)


@dataclass
class Request:
    """A request that came: its path (decoded, with the bucket), the Range header or nothing, the status it was answered
    with (0: none) and the bytes of body that were sent back."""

    method: str
    path: str
    range: str = ""
    status: int = 0
    sent: int = 0


@dataclass(frozen=True)
class _Mode:
    """The fault in force, and the event that ends its waits."""

    kind: str = "fine"
    match: str = ""
    amount: float = 0
    over: threading.Event = field(default_factory=threading.Event)

    def hits(self, kind: str, path: str) -> bool:
        return self.kind == kind and self.match in path


class Fault:
    """The switch. Each method replaces the fault before it, for what is requested from then on; `requests` is what came
    since the proxy started, in order, also what was not answered."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.mode = _Mode()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def fine(self) -> None:
        """Everything passes. What `slow` holds back goes on at once."""
        self._switch(_Mode())

    def down(self) -> None:
        """Connections are reset: open ones now, new ones as they come."""
        self._switch(_Mode("down"))
        self.reset_all()

    def slow(self, seconds: float) -> None:
        """Each request waits so long before it passes."""
        self._switch(_Mode("slow", amount=seconds))

    def full(self) -> None:
        """No space: what would write is refused with 507 as MinIO does, reading and deleting go on."""
        self._switch(_Mode("full"))

    def corrupt(self, match: str) -> None:
        """One bit of the middle byte of each GET's body is flipped where the path contains `match`; ranges each have
        their own middle. Length and headers stay, so a client that asked for a checksum of the whole object sees it:
        boto3 does for what it wrote itself; ranges (and polars) have none."""
        self._switch(_Mode("corrupt", match))

    def corrupt_writes(self, match: str) -> None:
        """One bit of the middle byte of each PUT's body is flipped on its way where the path contains `match`.

        Over plain HTTP boto3 and polars sign the body's SHA-256 with the request (there are no aws-chunked trailers, as
        over HTTPS), so a store that checks it refuses the write: XAmzContentSHA256Mismatch or BadDigest, status 400.
        """
        self._switch(_Mode("corrupt writes", match))

    def cut(self, match: str, after_bytes: int) -> None:
        """The connection is reset after so many bytes of a body where the path contains `match`: of what a GET answers,
        or of what a PUT brings, which the store then has a part of without its end."""
        self._switch(_Mode("cut", match, after_bytes))

    def bytes_sent(self, match: str = "", method: str = "GET") -> int:
        """The bytes of body that requests of this method were sent, by paths that contain `match`."""
        return sum(one.sent for one in list(self.requests) if one.method == method and match in one.path)

    def _switch(self, mode: _Mode) -> None:
        before, self.mode = self.mode, mode
        before.over.set()

    def opened(self, connection: socket.socket) -> None:
        """A client has connected."""
        with self._lock:
            self._open.add(connection)

    def closed(self, connection: socket.socket) -> None:
        """A client's connection is gone."""
        with self._lock:
            self._open.discard(connection)

    def reset_all(self) -> None:
        """Reset what is open. Only shut down here: the thread that serves a connection closes it."""
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def faulty(settings: Settings) -> Iterator[tuple[Settings, Fault]]:
    """A proxy in front of the settings' S3, without a fault at first: settings that go through it, and its switch."""
    fault = Fault()
    server = _Server(settings.s3_endpoint or "", fault)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="faulty", daemon=True)
    thread.start()
    try:
        port = server.server_address[1]
        yield settings.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{port}"}), fault
    finally:
        server.shutdown()
        thread.join()
        fault.fine()
        fault.reset_all()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, endpoint: str, fault: Fault) -> None:
        parts = urlsplit(endpoint)
        assert parts.scheme == "http", f"the proxy speaks HTTP only, not {endpoint}"
        assert parts.hostname
        self.store = (parts.hostname, parts.port or 80)
        self.fault = fault
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.fault.opened(request)
        if self.fault.mode.kind == "down":
            _reset(request)
            self.fault.closed(request)
            return
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        # Not in order where it is to be reset: closing is all that is left to do then.
        self.fault.closed(request)
        with contextlib.suppress(OSError):
            request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is what this is for; whatever else goes wrong shows in the client."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_any(self) -> None:
        """Pass one request on, with the fault that is in force."""
        fault = self.server.fault
        parts = urlsplit(self.path)
        request = Request(self.command, unquote(parts.path), self.headers.get("Range", ""))
        fault.requests.append(request)
        mode = fault.mode
        if mode.kind == "slow":
            mode.over.wait(mode.amount)
            mode = fault.mode
        if mode.kind == "down":
            return self._reset()
        deletes = self.command == "POST" and parts.query.split("=")[0] == "delete"
        if mode.kind == "full" and self.command in ("PUT", "POST") and not deletes:
            return self._refuse(request)
        store = http.client.HTTPConnection(*self.server.store, timeout=_UPSTREAM_S)
        try:
            if self._ask(store, request, mode):
                self._answer(store.getresponse(), request, mode)
        except (OSError, http.client.HTTPException):
            self._reset()
        finally:
            store.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_any  # noqa: N815

    def _ask(self, store: http.client.HTTPConnection, request: Request, mode: _Mode) -> bool:
        """Send the request to the store; whether it is whole."""
        store.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("expect", "connection"):
                store.putheader(name, value)
        store.endheaders()
        length = int(self.headers.get("Content-Length") or 0)
        cut = int(mode.amount) if request.method == "PUT" and mode.hits("cut", request.path) else None
        flip = length // 2 if request.method == "PUT" and mode.hits("corrupt writes", request.path) else -1
        for chunk in _chunks(self.rfile, length if cut is None else min(cut, length), flip):
            store.send(chunk)
        if cut is not None:
            self._reset()
        return cut is None

    def _answer(self, answer: http.client.HTTPResponse, request: Request, mode: _Mode) -> None:
        """Send the store's answer back."""
        has_length = answer.length is not None or request.method == "HEAD"
        body = None if has_length else answer.read()
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        request.status = answer.status
        if body is not None:
            request.sent = len(body)
            self.wfile.write(body)
            return
        length = answer.length or 0
        hit = request.method == "GET" and answer.status < 300
        cut = int(mode.amount) if hit and mode.hits("cut", request.path) else length
        flip = length // 2 if hit and mode.hits("corrupt", request.path) else -1
        for chunk in _chunks(answer, min(cut, length), flip):
            request.sent += len(chunk)
            self.wfile.write(chunk)
        if cut < length:
            self._reset()

    def _refuse(self, request: Request) -> None:
        for _ in _chunks(self.rfile, int(self.headers.get("Content-Length") or 0)):
            pass
        request.status, request.sent = 507, len(_FULL)
        self.send_response_only(507)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(_FULL)))
        self.end_headers()
        self.wfile.write(_FULL)

    def _reset(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: tests look at `Fault.requests`."""


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.close()


def _chunks(source: Any, length: int, flip: int = -1) -> Iterator[bytes]:
    """The next `length` bytes of a file, one bit changed in the byte at `flip`. Raises OSError if there are less."""
    at = 0
    while at < length:
        chunk = source.read(min(_CHUNK, length - at))
        if not chunk:
            raise OSError("the other side ended the connection")
        if at <= flip < at + len(chunk):
            chunk = chunk[: flip - at] + bytes([chunk[flip - at] ^ 1]) + chunk[flip - at + 1 :]
        at += len(chunk)
        yield chunk
