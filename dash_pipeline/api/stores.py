"""The stores behind the API, asked without blocking: database, search, and Kafka for its offsets.

Belongs here: connections, time limits, an answer as rows or structs. Does not belong here: SQL and questions to the
indexes (`dash_pipeline/storage/`), HTTP.

A store that does not answer within `api_timeout_s` is Away, whatever it is that it does; half a second later the next
request tries again.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import aiohttp
import msgspec
import psycopg
from psycopg.types.json import set_json_loads
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from dash_pipeline.api.answers import ChainHealth, Health
from dash_pipeline.errors import DashError, Unavailable, first_line
from dash_pipeline.lag import Extent, ExtentReader
from dash_pipeline.settings import Settings
from dash_pipeline.storage.checks import CHAINS
from dash_pipeline.storage.search.queries import Question
from dash_pipeline.topics import chain_topics

T = TypeVar("T")

# For how long a look at the stores' health is good: whoever asks more often gets the last one.
_HEALTH_S = 2.0
_CONNECTIONS = 8
# For how long nobody tries again what has just failed.
_AWAY_S = 0.5
_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_OFFSETS = "SELECT topic, partition, next_offset FROM ops.stream_offsets"


class Away(Unavailable):
    """A store does not answer; `store` is its name."""

    def __init__(self, store: str, problem: str) -> None:
        super().__init__(f"{store}: {problem}")
        self.store, self.problem = store, problem


class Hit(msgspec.Struct, Generic[T]):
    """A document that was found, and the values it was sorted by."""

    source: T = msgspec.field(name="_source")
    sort: list[Any] = []


class _Hits(msgspec.Struct, Generic[T]):
    hits: list[Hit[T]]


class _Answer(msgspec.Struct, Generic[T]):
    hits: _Hits[T]


class _Document(msgspec.Struct, Generic[T]):
    source: T = msgspec.field(name="_source")


@dataclass
class Stores:
    """What the handlers ask. Enter `connected` once, in the event loop that serves."""

    settings: Settings
    chains: frozenset[str]
    pool: AsyncConnectionPool[psycopg.AsyncConnection[Any]]
    search: aiohttp.ClientSession
    kafka: ExtentReader
    _health: Health | None = None
    _health_at: float = float("-inf")
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _lag: asyncio.Task[Extent] | None = None
    # Until when nobody asks a store again, and why; when a store last answered.
    _away: dict[str, tuple[float, str]] = field(default_factory=dict)
    _answered: dict[str, float] = field(default_factory=dict)

    # -------------------------------------------------------------------------------------------- database

    async def rows(self, query: str, params: Sequence[Any] | Mapping[str, Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query; JSON columns are bytes as the database wrote them. Raises Away."""

        async def ask() -> list[tuple[Any, ...]]:
            async with self.pool.connection() as conn:
                cursor = await conn.execute(query, params)
                return await cursor.fetchall()

        return await self._within("database", ask())

    # -------------------------------------------------------------------------------------------- search

    async def hits(self, question: Question, kind: type[T]) -> list[Hit[T]]:
        """What a question finds; an index that is not there holds nothing. Raises Away."""
        params = {"routing": question.routing} if question.routing else {}
        params["filter_path"] = "hits.hits._source,hits.hits.sort"
        found = await self._search("POST", f"/{question.index}/_search", params, msgspec.json.encode(question.body))
        # Without a hit the filtered answer is {}.
        if found is None or found == b"{}":
            return []
        answer: _Answer[T] = msgspec.json.decode(found, type=_Answer[kind])  # type: ignore[valid-type]
        return answer.hits.hits

    async def document(self, index: str, id_: str, kind: type[T]) -> T | None:
        """A document by its id, or None. Raises Away."""
        found = await self._search("GET", f"/{index}/_doc/{id_}", {"filter_path": "_source"})
        return None if found is None else msgspec.json.decode(found, type=_Document[kind]).source  # type: ignore[valid-type]

    async def _search(
        self, method: str, path: str, params: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> bytes | None:
        """An answer's body, None for 404."""

        async def ask() -> tuple[int, bytes]:
            url = self.settings.opensearch_url.rstrip("/") + path
            headers = {"Content-Type": "application/json"}
            async with self.search.request(method, url, params=params, data=body, headers=headers) as answer:
                return answer.status, await answer.read()

        status, found = await self._within("search", ask())
        if status == 404:
            return None
        if status in _BUSY:
            raise Away("search", f"it answers {status}")
        if status != 200:
            raise DashError(f"search: {status} {found[:500]!r}")
        return found

    # -------------------------------------------------------------------------------------------- health

    async def health(self) -> Health:
        """How the stores and each chain are, as of at most 2 s ago. Never raises: what does not answer is in it."""
        async with self._looking:
            now = asyncio.get_running_loop().time()
            if self._health is None or now - self._health_at >= _HEALTH_S:
                self._health = await self._look()
                self._health_at = asyncio.get_running_loop().time()
            return self._health

    async def _look(self) -> Health:
        chains, offsets, search, kafka = await asyncio.gather(
            self.rows(CHAINS), self.rows(_OFFSETS), self._search("GET", "/"), self._extent(), return_exceptions=True
        )
        stores = {}
        for name, found in (("database", chains), ("search", search), ("kafka", kafka)):
            if isinstance(found, BaseException) and not isinstance(found, DashError):
                raise found
            stores[name] = "ok" if not isinstance(found, DashError) else getattr(found, "problem", str(found))
        lag: Counter[str] = Counter()
        if isinstance(kafka, Extent) and not isinstance(offsets, BaseException):
            committed = {(topic, number): next_ for topic, number, next_ in offsets}
            for (topic, _), behind in kafka.lag(committed).items():
                lag[topic.partition(".")[0]] += behind
        rows = chains if not isinstance(chains, BaseException) else []
        found = [
            ChainHealth(
                chain=chain,
                newest_block=number,
                newest_block_ts=ts,
                behind_s=round(behind, 1),
                committed_s=None if committed is None else round(committed, 1),
                index_batches=batches,
                index_behind_s=round(index, 1),
                lag=lag[chain] if isinstance(kafka, Extent) else None,
            )
            for chain, number, ts, behind, committed, batches, index in rows
        ]
        if stores["database"] != "ok" or stores["search"] != "ok":
            status = "unavailable"
        elif stores["kafka"] != "ok" or any(one.index_behind_s > self.settings.fresh_within_s for one in found):
            status = "degraded"
        else:
            status = "ok"
        return Health(status, stores, found)

    async def _extent(self) -> Extent:
        """What is on Kafka. One look at a time: it is made in a thread, and a broker may hang."""
        if self._lag is None or self._lag.done():
            self._lag = asyncio.ensure_future(asyncio.to_thread(self._read_extent))
        return await self._within("kafka", _wait_for(self._lag))

    def _read_extent(self) -> Extent:
        return self.kafka.read([topic for chain in sorted(self.chains) for topic in chain_topics(chain)])

    # -------------------------------------------------------------------------------------------- time

    async def _within(self, store: str, asking: Coroutine[Any, Any, T]) -> T:
        """Its result; Away when there is none in time, or when the store was away a moment ago: who asks while it is
        away does not wait. What hangs may end whenever it likes."""
        clock = asyncio.get_running_loop().time
        began = clock()
        until, problem = self._away.get(store, (began, ""))
        if began < until:
            asking.close()
            raise Away(store, problem)
        task = asyncio.ensure_future(asking)
        try:
            done, _ = await asyncio.wait({task}, timeout=self.settings.api_timeout_s)
            if not done:
                task.cancel()
                problem = f"no answer within {self.settings.api_timeout_s:g} s"
                if self._answered.get(store, 0.0) > began:
                    # Others were answered meanwhile: it is this question that is slow.
                    raise Away(store, problem)
            else:
                found = task.result()
                self._answered[store] = clock()
                return found
        except PoolTimeout:
            problem = "no connection"
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            problem = first_line(error)
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
            # It is there for whoever asks for something else.
            raise Away(store, f"{first_line(error)}: it is not made yet") from error
        except (aiohttp.ClientError, OSError) as error:
            problem = f"no connection ({type(error).__name__})"
        except Away:
            raise
        except Unavailable as error:
            problem = str(error)
        self._away[store] = clock() + _AWAY_S, problem
        raise Away(store, problem)


@asynccontextmanager
async def connected(settings: Settings, chains: Sequence[str]) -> AsyncIterator[Stores]:
    """The stores of these settings, whether they are there yet or not."""
    pool: AsyncConnectionPool[psycopg.AsyncConnection[Any]] = AsyncConnectionPool(
        settings.timescale_dsn.get_secret_value(),
        min_size=1,
        max_size=_CONNECTIONS,
        timeout=settings.api_timeout_s,
        # The next request tries again; without this, a pool waits longer each time.
        reconnect_timeout=1,
        open=False,
        configure=_configure,
        check=AsyncConnectionPool.check_connection,
        kwargs={
            "autocommit": True,
            "connect_timeout": 2,
            "application_name": "dash-pipeline-api",
            "options": f"-c timezone=UTC -c statement_timeout={round(settings.api_timeout_s * 1000)}",
        },
    )
    user, password = settings.opensearch_username, settings.opensearch_password
    trusted = ssl.create_default_context(cafile=settings.opensearch_ca_file) if settings.opensearch_ca_file else True
    search = aiohttp.ClientSession(
        auth=aiohttp.BasicAuth(user, password.get_secret_value()) if user and password else None,
        connector=aiohttp.TCPConnector(limit=4 * _CONNECTIONS, ssl=trusted),
    )
    kafka = ExtentReader(settings, timeout_s=settings.api_timeout_s)
    try:
        await pool.open(wait=False)
        yield Stores(settings, frozenset(chains), pool, search, kafka)
    finally:
        await search.close()
        await pool.close(timeout=2)
        await asyncio.to_thread(kafka.close)


async def _configure(conn: psycopg.AsyncConnection[Any]) -> None:
    # Structs are made of JSON columns in one go.
    set_json_loads(_as_it_is, conn)


def _as_it_is(json: str | bytes) -> str | bytes:
    return json


async def _wait_for(task: asyncio.Task[T]) -> T:
    return await asyncio.shield(task)
