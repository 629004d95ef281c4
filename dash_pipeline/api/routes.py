"""The endpoints: their parameters, and from which store they are answered.

Belongs here: one handler for each question. Does not belong here: SQL, requests to OpenSearch
(`dash_pipeline/storage/`), and what every request goes through (`app.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec
from litestar import Request, Response, get
from litestar.exceptions import NotFoundException
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example
from litestar.params import Parameter

from dash_pipeline.alerts.rules import SEVERITIES, rank
from dash_pipeline.api import cursors, examples
from dash_pipeline.api.answers import (
    Activity,
    Alert,
    Alerts,
    Found,
    Health,
    Period,
    Periods,
    Prediction,
    Predictions,
    Problem,
    Token,
    Tokens,
    Transaction,
    Transactions,
    Wallet,
    WalletDay,
)
from dash_pipeline.api.stores import Hit, Stores
from dash_pipeline.errors import DashError
from dash_pipeline.storage import alerts, predictions, token_periods
from dash_pipeline.storage.search import queries
from dash_pipeline.storage.search.indexes import TOKENS_INDEX, alias
from dash_pipeline.storage.search.queries import SUMMARY

T = TypeVar("T")
Asked = Request[Any, Any, Any]

ADDRESS = "^0x[0-9a-fA-F]{40}$"

AddressPath = Annotated[
    str, Parameter(pattern=ADDRESS, description="0x and 40 hex digits", examples=[Example(value=examples.POOL)])
]
AlertPath = Annotated[
    str,
    Parameter(pattern="^[0-9a-f]{2,64}$", description="an alert's id", examples=[Example(value=examples.ALERT["id"])]),
]
Chain = Annotated[
    str, Parameter(pattern="^[a-z][a-z0-9_]{0,31}$", description="the chain's name in the registry",
                   examples=[Example(value="ethereum")])
]  # fmt: skip
AnyChain = Annotated[
    str | None,
    Parameter(pattern="^[a-z][a-z0-9_]{0,31}$", description="only this chain", examples=[Example(value="ethereum")]),
]
Limit = Annotated[int, Parameter(ge=1, le=200, description="how many at most", examples=[Example(value=20)])]
CursorParameter = Annotated[
    str | None,
    Parameter(min_length=16, max_length=512, pattern="^[A-Za-z0-9_-]+$",
              description="`next_cursor` of the page before, with the same parameters"),
]  # fmt: skip


def _endpoint(
    path: str,
    summary: str,
    kind: type,
    example: object,
    *,
    missing: str = "",
    max_age: int = 1,
    more: Sequence[int] = (),
) -> Callable[[Callable[..., Any]], Any]:
    """A GET that answers with `kind`, documented with everything that every endpoint may answer besides."""
    problems = {400: "a parameter is wrong, unknown or given twice", 401: "the key is not one that may be used",
                429: "too many requests: wait for Retry-After seconds",
                503: "a store is away: try again"}  # fmt: skip
    if missing:
        problems[404] = missing
    responses = {200: ResponseSpec(kind, description=summary, examples=[Example(value=example)])}
    responses[304] = ResponseSpec(None, description="nothing has changed since the ETag in If-None-Match")
    for status, text in problems.items():
        shown = Example(value=msgspec.to_builtins(Problem(TITLES[status], status, text)))
        responses[status] = ResponseSpec(
            Problem, description=text, media_type="application/problem+json", examples=[shown]
        )
    if 503 in more:
        responses[503] = ResponseSpec(kind, description="a store is away", examples=[Example(value=example)])
    return get(path, summary=summary, responses=responses, opt={"max_age": max_age})


TITLES = {
    400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed", 429: "Too Many Requests",
    500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- tokens


@_endpoint("/v1/tokens", "Tokens that lead a chain's last hour, day or week", Tokens,
           {"items": [examples.TOKEN], "next_cursor": examples.CURSOR},
           missing="there is no such chain", max_age=2)  # fmt: skip
async def tokens(
    request: Asked,
    chain: Chain = "ethereum",
    window: Annotated[
        Literal["1h", "24h", "7d"], Parameter(description="over which time", examples=[Example(value="7d")])
    ] = "7d",
    by: Annotated[
        Literal["change", "volume", "volume_quote", "trades", "liquidity_change"],
        Parameter(description="what they are ranked by, the largest first", examples=[Example(value="volume_quote")]),
    ] = "change",
    min_liquidity: Annotated[
        float,
        Parameter(
            ge=0,
            le=1e30,
            description="in the token's quote token: a price that a few coins set is no rank",
            examples=[Example(value=1000)],
        ),
    ] = 0,
    limit: Limit = 20,
    cursor: CursorParameter = None,
) -> Response[Tokens]:
    """Those that traded in that time. Ranks change while you page: a token that overtakes others meanwhile may come
    twice or not at all."""
    stores = _stores(request, chain)
    after = _after(request, cursor)
    order, leading = None, list[Hit[Token]]()
    if after is None:
        leading = await stores.hits(queries.ask_leading_tokens(chain, window, by, limit, min_liquidity), Token)
        order = queries.in_order([(one.sort[0], one.source.address) for one in leading], limit)
    if order is None:
        found = await stores.hits(queries.ask_top_tokens(chain, window, by, limit, min_liquidity, after), Token)
    else:
        found = [Hit(one.source, [*one.sort, one.source.address]) for one in map(leading.__getitem__, order)]
    return _answer(request, Tokens([one.source for one in found], _next(request, found, limit)))


@_endpoint("/v1/tokens/{address:str}", "A token's performance", Token, examples.TOKEN,
           missing="there is no such token or chain", max_age=2)  # fmt: skip
async def token(request: Asked, address: AddressPath, chain: Chain = "ethereum") -> Response[Token]:
    """Price, and change, volume, trades and liquidity over the chain's last hour, day and week."""
    stores = _stores(request, chain)
    found = await stores.document(alias(TOKENS_INDEX, chain), queries.token_id(chain, address), Token)
    if found is None:
        raise NotFoundException(f"no token {address.lower()} on {chain}")
    return _answer(request, found)


@_endpoint("/v1/tokens/{address:str}/history", "A token's hours, days or weeks", Periods,
           {"items": [examples.PERIOD], "next_cursor": examples.CURSOR},
           missing="there is no such chain", max_age=2)  # fmt: skip
async def history(
    request: Asked,
    address: AddressPath,
    chain: Chain = "ethereum",
    period: Annotated[
        Literal["1h", "24h", "7d"], Parameter(description="how long each is", examples=[Example(value="24h")])
    ] = "1h",
    limit: Limit = 20,
    cursor: CursorParameter = None,
) -> Response[Periods]:
    """Those in which it was traded, newest first, as far back as the mart `token_performance` goes. 503 while that is
    not built."""
    stores = _stores(request, chain)
    after = _after(request, cursor)
    query = token_periods.ask_periods(chain, address, period, limit, _time(after[0]) if after else None)
    rows = await stores.rows(*query)
    found = [msgspec.json.decode(document, type=Period) for _, document in rows]
    return _answer(request, Periods(found, _cursor(request, [(start.isoformat(),) for start, _ in rows], limit)))


# ---------------------------------------------------------------------------------------------- wallets


@_endpoint("/v1/wallets/{address:str}/activity", "What a wallet did", Activity, examples.ACTIVITY,
           missing="there is no such chain")  # fmt: skip
async def activity(
    request: Asked,
    address: AddressPath,
    chain: Chain = "ethereum",
    days: Annotated[int, Parameter(ge=1, le=90, description="active days at most", examples=[Example(value=7)])] = 7,
    transactions: Annotated[
        int, Parameter(ge=1, le=50, description="newest transactions at most", examples=[Example(value=10)])
    ] = 10,
) -> Response[Activity]:
    """Its last active days, newest first, and its newest transactions. A wallet that did nothing has neither."""
    stores = _stores(request, chain)
    question = queries.ask_wallet_transactions(chain, address, transactions, fields=SUMMARY)
    active, newest = await asyncio.gather(
        stores.hits(queries.ask_wallet_days(chain, address, days), WalletDay), stores.hits(question, Transaction)
    )
    found = Activity(chain, address.lower(), [one.source for one in active], [one.source for one in newest])
    return _answer(request, found)


@_endpoint("/v1/wallets/{address:str}/transactions", "A wallet's transactions", Transactions,
           {"items": [examples.TRANSACTION], "next_cursor": examples.CURSOR},
           missing="there is no such chain")  # fmt: skip
async def transactions(
    request: Asked,
    address: AddressPath,
    chain: Chain = "ethereum",
    limit: Limit = 20,
    cursor: CursorParameter = None,
) -> Response[Transactions]:
    """Those that it sent or received, or in which a token went to or from it, newest first."""
    stores = _stores(request, chain)
    question = queries.ask_wallet_transactions(chain, address, limit, _after(request, cursor), SUMMARY)
    found = await stores.hits(question, Transaction)
    return _answer(request, Transactions([one.source for one in found], _next(request, found, limit)))


# ---------------------------------------------------------------------------------------------- search


@_endpoint("/v1/search", "Find a token, wallet or transaction", Found, examples.FOUND,
           missing="there is no such chain", max_age=2)  # fmt: skip
async def search(
    request: Asked,
    q: Annotated[
        str,
        Parameter(
            min_length=1,
            max_length=66,
            examples=[Example(value="PEP"), Example(value="0xbbbb")],
            description="an address or a transaction's hash, the beginning of a token's contract or of a hash"
            f" (at least {queries.SHORTEST_PREFIX} characters), or of a token's symbol or name",
        ),
    ],
    chain: Chain = "ethereum",
    limit: Annotated[int, Parameter(ge=1, le=50, description="of each kind", examples=[Example(value=10)])] = 10,
) -> Response[Found]:
    """Letters may be of any case."""
    stores = _stores(request, chain)
    kinds: dict[str, type] = {"token": Token, "wallet": Wallet, "transactions": Transaction}
    questions = queries.ask_anything(q, chain, limit)
    asked = [next(kind for name, kind in kinds.items() if one.index.startswith(name)) for one in questions]
    found: list[list[Hit[Any]]] = await asyncio.gather(*map(stores.hits, questions, asked))
    by_kind = {kind: [hit.source for hit in hits] for kind, hits in zip(asked, found, strict=True)}
    return _answer(request, Found(*(by_kind.get(kind, []) for kind in kinds.values())))


# ---------------------------------------------------------------------------------------------- alerts, predictions


@_endpoint("/v1/alerts", "Alerts", Alerts, {"items": [examples.ALERT], "next_cursor": examples.CURSOR},
           missing="there is no such chain")  # fmt: skip
async def alert_list(
    request: Asked,
    severity: Annotated[
        Literal["low", "medium", "high"], Parameter(description="at least", examples=[Example(value="high")])
    ] = "low",
    chain: AnyChain = None,
    pool: Annotated[
        str | None, Parameter(pattern=ADDRESS, description="only this pool's", examples=[Example(value=examples.POOL)])
    ] = None,
    since: Annotated[
        str | None,
        Parameter(
            description="raised at this time or later, with its time zone",
            schema_extra={"format": "date-time"},
            examples=[Example(value="2024-06-01T00:00:00Z")],
        ),
    ] = None,
    active: Annotated[
        bool, Parameter(description="only those that are not taken back", examples=[Example(value=True)])
    ] = False,
    limit: Limit = 20,
    cursor: CursorParameter = None,
) -> Response[Alerts]:
    """Those first that were raised last."""
    stores = _stores(request, chain)
    after = _after(request, cursor)
    query = alerts.ask_newest(
        SEVERITIES[rank(severity) :],
        limit,
        chain,
        active_only=active,
        pool=_bytes(pool),
        since=_moment(since),
        after=(_time(after[0]), _time(after[1]), bytes.fromhex(str(after[2]))) if after else None,
    )
    rows = await stores.rows(*query)
    found = [msgspec.json.decode(document, type=Alert) for *_, document in rows]
    places = [(raised.isoformat(), ts.isoformat(), id_.hex()) for raised, ts, id_, _ in rows]
    return _answer(request, Alerts(found, _cursor(request, places, limit)))


@_endpoint("/v1/alerts/{id:str}", "An alert", Alert, examples.ALERT, missing="there is no such alert")
async def alert(request: Asked, id: AlertPath) -> Response[Alert]:
    """With what the detector measured and what the models said."""
    rows = await _stores(request).rows(*alerts.ask_one(_id(id)))
    if not rows:
        raise NotFoundException(f"no alert {id}")
    return _answer(request, msgspec.json.decode(rows[0][1], type=Alert))


@_endpoint("/v1/alerts/{id:str}/predictions", "Predictions made for an alert", Predictions, examples.PREDICTIONS)
async def alert_predictions(
    request: Asked, id: AlertPath, limit: Limit = 20, cursor: CursorParameter = None
) -> Response[Predictions]:
    """What the models said about its pool and wallets. Those of archived days are in the alert itself."""
    return await _predictions(request, limit, cursor, anomaly=_id(id))


@_endpoint("/v1/pools/{address:str}/predictions", "Predictions about a pool", Predictions, examples.PREDICTIONS,
           missing="there is no such chain")  # fmt: skip
async def pool_predictions(
    request: Asked, address: AddressPath, chain: AnyChain = None, limit: Limit = 20, cursor: CursorParameter = None
) -> Response[Predictions]:
    """Whenever an alert about it was raised, newest first, as far as they are hot."""
    return await _predictions(request, limit, cursor, subject=("pool", bytes.fromhex(address[2:])), chain=chain)


@_endpoint("/v1/wallets/{address:str}/predictions", "Predictions about a wallet", Predictions, examples.PREDICTIONS,
           missing="there is no such chain")  # fmt: skip
async def wallet_predictions(
    request: Asked, address: AddressPath, chain: AnyChain = None, limit: Limit = 20, cursor: CursorParameter = None
) -> Response[Predictions]:
    """Whenever an alert that it is behind was raised, newest first, as far as they are hot."""
    return await _predictions(request, limit, cursor, subject=("wallet", bytes.fromhex(address[2:])), chain=chain)


async def _predictions(request: Asked, limit: int, cursor: str | None, **of: Any) -> Response[Predictions]:
    stores = _stores(request, of.get("chain"))
    after = _after(request, cursor)
    if after:
        of["after"] = (_time(after[0]), bytes.fromhex(str(after[1])), str(after[2]), bytes.fromhex(str(after[3])))
    rows = await stores.rows(*predictions.ask_newest(limit, **of))
    found = [msgspec.json.decode(document, type=Prediction) for *_, document in rows]
    places = [(at.isoformat(), id_.hex(), model, subject.hex()) for at, id_, model, subject, _ in rows]
    return _answer(request, Predictions(found, _cursor(request, places, limit)))


# ---------------------------------------------------------------------------------------------- health


@_endpoint("/v1/health", "How the platform is", Health, examples.HEALTH, max_age=0, more=[503])
async def health(request: Asked) -> Response[Health]:
    """Each chain's newest block, lag and indexes, as of at most 2 s ago. 503 when answers of other endpoints fail."""
    found = await _stores(request).health()
    return _answer(request, found, status=503 if found.status == "unavailable" else 200)


@get("/healthz", include_in_schema=False, sync_to_thread=False, opt={"free": True})
def healthz() -> dict[str, str]:
    """The process answers, whatever is behind it."""
    return {"status": "ok"}


HANDLERS = [
    tokens, token, history, activity, transactions, search, alert_list, alert, alert_predictions, pool_predictions,
    wallet_predictions, health, healthz,
]  # fmt: skip


# ---------------------------------------------------------------------------------------------- what they share


def _stores(request: Asked, chain: str | None = None) -> Stores:
    """The stores. Raises NotFoundException for a chain that is none of the registry's."""
    stores: Stores = request.app.state["stores"]
    if chain is not None and chain not in stores.chains:
        raise NotFoundException(f"chain: no {chain} in the registry (known: {', '.join(sorted(stores.chains))})")
    return stores


def _answer(request: Asked, content: T, status: int = 200) -> Response[T]:
    """JSON with an ETag of its content; 304 without content when the client has it already."""
    body = msgspec.json.encode(content)
    # Weak: compressed or not, it is the same.
    tag = f'W/"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    max_age = request.route_handler.opt["max_age"]
    headers = {"ETag": tag, "Cache-Control": f"private, max-age={max_age}" if max_age else "no-store"}
    asked = [one.strip() for one in request.headers.get("if-none-match", "").split(",")]
    if status == 200 and ("*" in asked or tag in asked):
        return cast(Response[T], Response(None, status_code=304, headers=headers))
    return cast(Response[T], Response(body, status_code=status, headers=headers, media_type="application/json"))


def _question(request: Asked) -> str:
    """What a cursor is of: the path and all parameters but those that only say which part of the answers."""
    given = sorted((name, value) for name, value in request.query_params.multi_items() if name not in _PAGING)
    return json.dumps([request.url.path.lower(), given])


_PAGING = ("cursor", "limit")


def _after(request: Asked, cursor: str | None) -> list[Any] | None:
    return cursors.read(request.app.state["cursor_key"], _question(request), cursor) if cursor else None


def _next(request: Asked, found: Sequence[Hit[Any]], limit: int) -> str | None:
    return _cursor(request, [one.sort for one in found], limit)


def _cursor(request: Asked, places: Sequence[Sequence[object]], limit: int) -> str | None:
    """The cursor behind the last row of a page, unless the page is the last one for sure."""
    if len(places) < limit:
        return None
    return cursors.write(request.app.state["cursor_key"], _question(request), places[-1])


def _moment(since: str | None) -> datetime | None:
    # Not by the parameter's type: from a query, where all is text, the library takes numbers for times.
    try:
        moment: datetime | None = msgspec.convert(since, Annotated[datetime, msgspec.Meta(tz=True)] | None)
    except msgspec.ValidationError as error:
        raise DashError(f"since: {error}") from None
    return moment


def _bytes(address: str | None) -> bytes | None:
    return bytes.fromhex(address[2:]) if address else None


def _id(text: str) -> bytes:
    # An odd number of digits is nobody's id.
    return bytes.fromhex(text) if len(text) % 2 == 0 else b""


def _time(text: object) -> datetime:
    return datetime.fromisoformat(str(text))
