"""A receiver of webhooks, for tests: a real HTTP server that checks signatures, fails as it is told, keeps what came.

It does what a good receiver does: it takes a request once per `Idempotency-Key`.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import SecretStr

from dash_pipeline.alerts.deliver import KEY, verify

SECRET = SecretStr("a secret that sender and receiver share")


@dataclass(frozen=True)
class Request:
    """A request that came, and what it was answered: `taken`: 2xx; `new`: its key was not taken before."""

    at: float
    path: str
    headers: dict[str, str]
    body: bytes
    signed: bool
    taken: bool = False
    new: bool = False

    @property
    def key(self) -> str:
        return self.headers[KEY]

    @property
    def message(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.body)
        return value

    @property
    def alerts(self) -> list[dict[str, Any]]:
        value: list[dict[str, Any]] = self.message["alerts"]
        return value


@dataclass
class Receiver:
    """Listens on a port of its own while it is entered, and between `up` and `down`.

    `answers`: statuses, with headers, of the next requests, before everything is 200 again; `refuses`: what it thinks
    of a message, an error status or 0; `seen`: called with each request before it is answered; `hang_s`: seconds before
    each answer; `drip`: sends an endless answer, a byte at a time.
    """

    secret: SecretStr = SECRET
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    refuses: Callable[[Request], int] = lambda request: 0
    seen: Callable[[Request], None] = lambda request: None
    hang_s: float = 0
    drip: bool = False
    requests: list[Request] = field(default_factory=list)
    port: int = 0

    def __enter__(self) -> Receiver:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?token=t"

    def up(self) -> None:
        """Listen; on the same port as before, if there was one."""
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler())
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def down(self) -> None:
        """Close the port: the next connection is refused."""
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail(self, times: int, status: int = 500, **headers: str) -> None:
        """Answer so to the next requests."""
        self.answers += [(status, {name.replace("_", "-"): value for name, value in headers.items()})] * times

    def taken(self) -> list[dict[str, Any]]:
        """The alerts of requests that were answered 2xx, each request once."""
        return [alert for request in self.requests if request.new for alert in request.alerts]

    def told(self) -> Counter[tuple[str, str]]:
        """How often each (id, event) was taken."""
        return Counter((alert["id"], alert["event"]) for alert in self.taken())

    def events(self) -> list[str]:
        return [alert["event"] for alert in self.taken()]

    def sizes(self) -> list[int]:
        return [len(request.alerts) for request in self.requests]

    def _take(self, request: Request) -> tuple[int, dict[str, str]]:
        self.seen(request)
        self._ended.wait(self.hang_s)
        with self._lock:
            status, headers = self.answers.pop(0) if self.answers else (0, {})
            if not request.signed:
                status = 401
            status = status or self.refuses(request) or 200
            taken = status < 300
            new = taken and not any(earlier.key == request.key for earlier in self.requests if earlier.new)
            self.requests.append(Request(**(vars(request) | {"taken": taken, "new": new})))
            return status, headers

    def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = dict(self.headers.items())
                signed = verify(receiver.secret, headers, body, time.time())
                request = Request(time.time(), self.path, headers, body, signed)
                if receiver.drip:
                    receiver.requests.append(request)
                    self._drip()
                    return
                status, more = receiver._take(request)
                try:
                    self.send_response(status)
                    for name, value in more.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(f"status {status}".encode())
                except OSError:
                    pass  # the sender has gone

            def _drip(self) -> None:
                try:
                    while not receiver._ended.wait(0.2):
                        self.wfile.write(b"H")
                        self.wfile.flush()
                except OSError:
                    pass

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def ids(alerts: Sequence[dict[str, Any]]) -> set[str]:
    """The ids of alerts as a receiver has them."""
    return {alert["id"] for alert in alerts}
