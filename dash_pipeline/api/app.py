"""The application: what every request goes through, and how it is served.

Belongs here: admission, errors, metrics, the OpenAPI document, the server. Does not belong here: the endpoints
(`routes.py`), who may ask how much (`limits.py`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from litestar import Litestar, Request, Response
from litestar.config.compression import CompressionConfig
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from dash_pipeline.api import cursors
from dash_pipeline.api.answers import Problem
from dash_pipeline.api.limits import ANONYMOUS, Buckets, Decision, Keys
from dash_pipeline.api.page import Page
from dash_pipeline.api.routes import HANDLERS, TITLES
from dash_pipeline.api.stores import Away, Stores, connected
from dash_pipeline.chains import load_chains
from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.settings import Settings
from dash_pipeline.storage import api_keys

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

#: The header that a key comes in; the load balancer knows it by the same name.
HEADER = b"x-api-key"
_VERSION = "1"
_ABOUT = (
    "What Dash Pipeline knows of chains: tokens, wallets, alerts, predictions. Addresses are lower-case hex, exact"
    " amounts strings of digits, times ISO 8601 in UTC."
)
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


def build(settings: Settings) -> Asgi:
    """The application of these settings. Stores may be away when it starts. Raises DashError for a wrong registry."""
    app = _litestar(settings)
    registry = CollectorRegistry()
    requests = Counter("dash_api_requests", "Requests answered", ["route", "status", "tier"], registry=registry)
    seconds = Histogram(
        "dash_api_request_seconds", "Time to answer", ["route", "tier"], buckets=_SECONDS, registry=registry
    )
    buckets = Buckets(settings.api_tiers)

    async def find(hash_: bytes) -> str | None:
        stores: Stores = app.state["stores"]
        rows = await stores.rows(api_keys.FIND, (hash_,))
        return rows[0][0] if rows else None

    keys = Keys(find, settings.api_key_cache_s)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)  # type: ignore[arg-type]
        if scope["path"] == "/metrics":
            return await _respond(send, 200, generate_latest(registry), b"text/plain; version=0.0.4")
        started, status, tier = time.perf_counter(), 500, "none"
        extra: list[tuple[bytes, bytes]] = []

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        try:
            if scope["path"].startswith("/v1/"):
                problem, decision = await _admit(scope, settings, keys, buckets)
                if decision:
                    tier, extra = decision.tier, decision.headers()
                if problem:
                    return await _problem(noted, problem)
            return await app(scope, receive, noted)  # type: ignore[arg-type]
        finally:
            # Paths that are none would be as many as clients like.
            route = scope.get("path_template") or "none"
            requests.labels(route, status, tier).inc()
            seconds.labels(route, tier).observe(time.perf_counter() - started)

    return serve


async def _admit(
    scope: Scope, settings: Settings, keys: Keys, buckets: Buckets
) -> tuple[Problem | None, Decision | None]:
    """Why the request is refused, if it is, and what its key or address may still ask."""
    address = scope["client"][0] if scope.get("client") else ""
    given = next((value.decode("latin-1") for name, value in scope["headers"] if name == HEADER), None)
    if given is None and not settings.api_anonymous:
        return Problem(TITLES[401], 401, "send a key in the header X-Api-Key"), None
    who: bytes | str = address
    tier: str | None = ANONYMOUS
    if given is not None:
        try:
            who, tier = await keys.tier(given)
        except Away as error:
            return Problem(TITLES[503], 503, str(error), store=error.store), None
    if tier is None:
        # Whoever tries keys pays for it from his address's bucket.
        decision = buckets.take(address, ANONYMOUS)
        if not decision.wait_s:
            return Problem(TITLES[401], 401, "X-Api-Key: there is no such key, or it is revoked"), decision
    else:
        decision = buckets.take(who, tier)
    if decision.wait_s:
        policy = decision.policy
        text = f"tier {decision.tier} may ask {policy.rate:g} times a second, {policy.burst} times at once"
        return Problem(TITLES[429], 429, f"{text}; try again in {decision.wait_s:.1f} s"), decision
    return None, decision


def _litestar(settings: Settings) -> Litestar:
    chains = load_chains(settings.chains_file)

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        async with connected(settings, list(chains)) as stores:
            app.state["stores"] = stores
            yield

    app = Litestar(
        HANDLERS,
        lifespan=[lifespan],
        before_request=_refuse_unknown,
        exception_handlers={Exception: _failed},
        compression_config=CompressionConfig("gzip", minimum_size=1_000, gzip_compress_level=5),
        openapi_config=OpenAPIConfig(
            title="Dash Pipeline",
            version=_VERSION,
            description=_ABOUT,
            path="/docs",
            render_plugins=[Page(path="/"), JsonRenderPlugin(path="/openapi.json", media_type="application/json")],  # type: ignore[arg-type]
            components=Components(
                security_schemes={"key": SecurityScheme(type="apiKey", name="X-Api-Key", security_scheme_in="header")}
            ),
            security=[{"key": []}, {}],
        ),
        logging_config=None,
    )
    app.state["cursor_key"] = cursors.key(settings)
    return app


async def _refuse_unknown(request: Request[Any, Any, Any]) -> Response[Any] | None:
    """A parameter that is misspelt would be ignored without a word; of one that is given twice, one would be."""
    known = request.route_handler.parsed_fn_signature.parameters.keys() - request.path_params.keys() - {"request"}
    given = [name for name, _ in request.query_params.multi_items()]
    if unknown := sorted(set(given) - known):
        there = ", ".join(sorted(known)) or "none"
        return _as_response(Problem(TITLES[400], 400, f"{unknown[0]}: no such parameter; there are: {there}"))
    if twice := sorted({name for name in given if given.count(name) > 1}):
        return _as_response(Problem(TITLES[400], 400, f"{twice[0]}: given more than once"))
    return None


def _failed(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Every error is a problem with one sentence that says what is wrong."""
    headers: dict[str, str] = {}
    store = None
    if isinstance(error, HTTPException):
        status, headers = error.status_code, dict(error.headers or {})
        detail = _sentence(error)
    elif isinstance(error, Unavailable):
        status, detail, store = 503, str(error), getattr(error, "store", None)
        headers["Retry-After"] = "1"
    elif isinstance(error, DashError):
        status, detail = 400, str(error)
    else:
        log.error("%s", request.url.path, exc_info=error)
        status, detail = 500, "the API has a bug; its log says more"
    title = TITLES.get(status) or "Error"
    return _as_response(Problem(title, status, detail, store=store), headers)


def _sentence(error: HTTPException) -> str:
    """Which parameter, and what is wrong with it."""
    problems = error.extra if isinstance(error.extra, list) else []
    said = [f"{one.get('key', '?')}: {one.get('message', '')}" for one in problems if isinstance(one, dict)]
    # Of what the router finds the library says the title only.
    plain = {"Not Found": "there is no such path; /docs lists them", "Method Not Allowed": "only GET is answered"}
    return "; ".join(said) or plain.get(error.detail, error.detail)


def _as_response(problem: Problem, headers: dict[str, str] | None = None) -> Response[Any]:
    return Response(
        msgspec.json.encode(problem),
        status_code=problem.status,
        media_type="application/problem+json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


async def _problem(send: Send, problem: Problem) -> None:
    """A problem of a request that does not reach the application."""
    more = {401: [(b"www-authenticate", b'ApiKey realm="dash"')], 503: [(b"retry-after", b"1")]}
    body = msgspec.json.encode(problem)
    await _respond(send, problem.status, body, b"application/problem+json", more.get(problem.status, []))


async def _respond(
    send: Send, status: int, body: bytes, media_type: bytes, more: list[tuple[bytes, bytes]] | None = None
) -> None:
    headers = [
        (b"content-type", media_type),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers + (more or [])})
    await send({"type": "http.response.body", "body": body})


def run(settings: Settings, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; requests in hand are answered first."""
    import uvicorn

    uvicorn.run(
        build(settings),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=True,
        forwarded_allow_ips=settings.api_proxies,
        timeout_graceful_shutdown=10,
        lifespan="on",
    )
