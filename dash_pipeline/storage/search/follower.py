"""Keeps the indexes up with the tables: what committed micro-batches touched is written anew, after the commit.

Belongs here: taking the outbox, the order of steps, the thread that does it beside a lane. Does not belong here: what
is in a document (`documents.py`, `rollups.py`).

Whatever touched blocks is computed from committed rows and written whole, so that doing it twice, or after a crash in
the middle, gives the same index. One cycle at a time per chain, across processes: an advisory lock. It also orders
versions: a version is taken and the rows are read under the same lock, so a later version has seen at least as much.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeVar

import psycopg
from opensearchpy import OpenSearch, OpenSearchException

from dash_pipeline.chains import QuoteToken, load_chains
from dash_pipeline.errors import DashError
from dash_pipeline.settings import Settings
from dash_pipeline.storage import timescale
from dash_pipeline.storage.changes import CHANGED_HOURS
from dash_pipeline.storage.search import documents, indexes, rollups
from dash_pipeline.storage.search.bulk import IndexMissing, Written, client, one_line, write
from dash_pipeline.storage.search.indexes import TOKENS_INDEX, TRANSACTIONS_INDEX, WALLETS_INDEX
from dash_pipeline.storage.search.rollups import Blocks
from dash_pipeline.storage.timescale import Connection

log = logging.getLogger(__name__)
T = TypeVar("T")

# Blocks and outbox rows that one cycle takes at most: what is done again after a crash in the middle of it.
_BLOCKS_PER_CYCLE = 2_000
_ROWS_PER_CYCLE = 2_000
# Pools that a cycle recomputes only because time has passed.
_DUE_PER_CYCLE = 500
# What a step takes, roughly, with its rests, and what it may hold.
_STEP_S = 0.15
_BLOCKS_AT_ONCE = 64
_LINES_AT_ONCE = 400
_POOLS_AT_ONCE = 100
# Rests as a share of the work before them; shorter the further the indexes are behind, and none from so far behind on.
_REST = 0.5
_PATIENCE_S = 10.0
# How long a request is tried before the cycle is given up; the thread itself never gives up.
_RETRY_FOR_S = 2.0
_POLL_S = 0.5
_LONGEST_PAUSE_S = 10.0
# How long the indexes wait at most for a lane with a backlog, each time.
_REST_S = 10.0


@dataclass
class Progress:
    """What a cycle did. `lag_s`: from the commit of the oldest row taken to when the indexes had it all.

    `more`: something is left to do. `held`: another follower or a rebuild had the chain, and nothing was done.
    """

    rows: int = 0
    blocks: int = 0
    lag_s: float = 0
    more: bool = False
    held: bool = False
    written: dict[str, Written] = field(default_factory=dict)

    @property
    def documents(self) -> int:
        """Documents sent, deletions among them."""
        return sum(written.documents for written in self.written.values())

    @property
    def conflicts(self) -> int:
        """Documents that lost to a newer version."""
        return sum(written.conflicts for written in self.written.values())


def connect(settings: Settings) -> Connection:
    """A connection for the statements of this package. Raises Unavailable when the database cannot be reached."""
    conn = timescale.connect(settings)
    # Times in documents are UTC.
    conn.execute("SET TIME ZONE 'UTC'")
    # Everything is looked up by keys; a table that has grown since it was analysed must not be read whole for that.
    conn.execute("SET enable_seqscan = off")
    conn.execute("SET jit = off")
    conn.execute("SET max_parallel_workers_per_gather = 0")
    # A killed run must not hold the chain until its last statement ends.
    conn.execute("SET client_connection_check_interval = '1s'")
    # A plan is made for the days and the number of keys at hand: chunks are excluded while planning.
    conn.prepare_threshold = None
    return conn


@contextmanager
def held(conn: Connection, chain: str, *, wait: bool) -> Iterator[bool]:
    """Hold a chain's rollups and versions for this connection; False if somebody else does and `wait` is not set."""
    key = "hashtextextended('search:' || %s, 0)"
    if wait:
        conn.execute(f"SELECT pg_advisory_lock({key})", (chain,))
    else:
        row = conn.execute(f"SELECT pg_try_advisory_lock({key})", (chain,)).fetchone()
        if row is None or not row[0]:
            yield False
            return
    try:
        yield True
    finally:
        # A connection that cannot say so any more is closed by whoever owns it, which unlocks as well.
        with suppress(psycopg.Error):
            conn.execute(f"SELECT pg_advisory_unlock({key})", (chain,))


def next_version(conn: Connection) -> int:
    """A version for documents whose rows are read after this."""
    row = conn.execute("SELECT nextval('ops.search_version')").fetchone()
    assert row is not None
    return int(row[0])


def chain_time(conn: Connection, chain: str) -> datetime | None:
    """The timestamp of the chain's newest block; where no block has arrived, of the newest block that rows name."""
    row = conn.execute(
        "SELECT coalesce((SELECT tip_ts FROM ops.chains WHERE chain = %(chain)s), (SELECT ts FROM ops.block_tree"
        " WHERE chain = %(chain)s AND status IN ('canonical', 'provisional') ORDER BY block_number DESC LIMIT 1))",
        {"chain": chain},
    ).fetchone()
    return row[0] if row else None


def follow_once(
    conn: Connection,
    opensearch: OpenSearch,
    chain: str,
    quotes: Iterable[QuoteToken] = (),
    rest: Callable[[], None] = lambda: None,
) -> Progress:
    """Bring the indexes up to date with what is in the outbox of a chain, or with a bounded part of it.

    `conn` is from `connect`; `rest` is called between steps of some hundredths of a second. Raises Unavailable when the
    index does not answer, psycopg.OperationalError when the database does not; the outbox then still holds what is not
    in the index.
    """
    with held(conn, chain, wait=False) as mine:
        return _cycle(conn, opensearch, chain, quotes, rest) if mine else Progress(held=True)


def _cycle(
    conn: Connection, opensearch: OpenSearch, chain: str, quotes: Iterable[QuoteToken], rest: Callable[[], None]
) -> Progress:
    """Rollups before the documents that are made of them; tokens last, once for all days; the outbox when all is in."""
    ids, committed_at = _take(conn, chain)
    progress = Progress(rows=len(ids))
    version = next_version(conn)
    targets = _targets(conn, chain)
    quotes = documents.preferred_quotes(quotes)

    def send(index: str, lines: Generator[bytes]) -> None:
        done = progress.written.setdefault(index, Written())
        done.add(_write(opensearch, index, chain, targets.get(index), _resting(lines, rest)))

    tokens: set[bytes] = set()
    pools: set[bytes] = set()
    for blocks in _blocks_by_day(conn, chain, ids):
        progress.blocks += len(blocks.hashes)
        wallets: set[bytes] = set()
        minutes: set[tuple[bytes, datetime]] = set()
        for part in _steps(blocks):
            touched = rollups.touched(conn, chain, part)
            rollups.refresh_wallet_blocks(conn, chain, part)
            rest()
            send(TRANSACTIONS_INDEX, documents.transaction_lines(conn, chain, part, version))
            wallets.update(touched.wallets)
            minutes.update(touched.minutes)
            tokens.update(touched.tokens)
            pools.update(touched.pools)
        rollups.refresh_candles(conn, chain, blocks.day, minutes)
        rest()
        rollups.drop_prefixes(conn, chain, blocks, wallets)
        busy: list[bytes] = []
        settled = rollups.settled(blocks)
        send(WALLETS_INDEX, documents.wallet_lines(conn, chain, blocks.day, list(wallets), version, settled, busy))
        rollups.extend_prefixes(conn, chain, blocks, busy)
        rest()
    as_of = chain_time(conn, chain)
    if as_of is not None:
        due = rollups.due_pools(conn, chain, as_of, _DUE_PER_CYCLE)
        progress.more = len(due) == _DUE_PER_CYCLE
        pools.update(due)
        for some in slices(list(pools), _POOLS_AT_ONCE):
            tokens.update(rollups.refresh_pool_windows(conn, chain, some, as_of, [quote.contract for quote in quotes]))
            rest()
        send(TOKENS_INDEX, documents.token_lines(conn, chain, list(tokens), as_of, quotes, version))
    _finish(conn, ids)
    progress.more = progress.more or len(ids) > 0
    if committed_at is not None:
        progress.lag_s = max(0.0, time.time() - committed_at.timestamp())
    return progress


def _steps(blocks: Blocks) -> Iterator[Blocks]:
    """The blocks of a day, a few at a time: as many as take about as long as a step is meant to."""
    size, start = 2, 0
    while start < len(blocks.hashes):
        began = time.perf_counter()
        yield replace(blocks, hashes=blocks.hashes[start : start + size])
        start += size
        took = time.perf_counter() - began
        size = max(1, min(2 * size, _BLOCKS_AT_ONCE, round(size * _STEP_S / took)))


def slices(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items, at most `size` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _resting(lines: Generator[bytes], rest: Callable[[], None]) -> Generator[bytes]:
    """The lines, with a rest between some and the next. Closing it ends the statement that they come from."""
    with closing(lines):
        for n, line in enumerate(lines, 1):
            yield line
            if n % _LINES_AT_ONCE == 0:
                rest()


def _take(conn: Connection, chain: str) -> tuple[list[int], datetime | None]:
    """The oldest outbox rows, as many as a cycle takes, and when the oldest was committed."""
    row = conn.execute(
        "SELECT array_agg(id), min(committed_at) FROM (SELECT id, committed_at,"
        "  sum(cardinality(blocks)) OVER (ORDER BY id) - cardinality(blocks) AS before"
        "  FROM (SELECT * FROM ops.search_outbox WHERE chain = %s ORDER BY id LIMIT %s) o) o WHERE before < %s",
        (chain, _ROWS_PER_CYCLE, _BLOCKS_PER_CYCLE),
    ).fetchone()
    return (row[0] or [], row[1]) if row else ([], None)


def _blocks_by_day(conn: Connection, chain: str, ids: Sequence[int]) -> list[Blocks]:
    """The blocks that these outbox rows name, by the day they are of, oldest first."""
    rows = conn.execute(
        "SELECT date_trunc('day', ts), array_agg(block_hash ORDER BY ts), min(ts) FROM ("
        " SELECT block_hash, min(coalesce(t.ts, o.ts_min)) AS ts FROM ops.search_outbox o"
        " CROSS JOIN unnest(o.blocks) b(block_hash) LEFT JOIN ops.block_tree t USING (chain, block_hash)"
        " WHERE o.chain = %s AND o.id = ANY(%s) GROUP BY block_hash) b GROUP BY 1 ORDER BY 1",
        (chain, list(ids)),
        binary=True,
    ).fetchall()
    return [Blocks(*row) for row in rows]


def _targets(conn: Connection, chain: str) -> dict[str, str]:
    """Indexes being rebuilt, which get every document besides the ones in use."""
    return dict(conn.execute("SELECT index, target FROM ops.search_rebuilds WHERE chain = %s", (chain,)).fetchall())


def _write(opensearch: OpenSearch, index: str, chain: str, target: str | None, lines: Iterable[bytes]) -> Written:
    name = indexes.alias(index, chain)
    if target is None:
        return write(opensearch, name, lines, _RETRY_FOR_S)
    lines = list(lines)
    write(opensearch, target, lines, _RETRY_FOR_S, is_alias=False)
    return write(opensearch, name, lines, _RETRY_FOR_S)


def _finish(conn: Connection, ids: Sequence[int]) -> None:
    """Strike the rows off the outbox, move the watermark, and tell the marts which hours changed, together."""
    if not ids:
        return
    conn.execute(
        "WITH done AS (DELETE FROM ops.search_outbox WHERE id = ANY(%s)"
        "  RETURNING chain, blocks, ts_min, topics, partitions, next_offsets),"
        f" hours AS ({CHANGED_HOURS})"
        " INSERT INTO ops.search_watermark AS w (topic, partition, next_offset)"
        " SELECT topic, partition, max(next_offset) FROM done, unnest(topics, partitions, next_offsets)"
        "  AS d(topic, partition, next_offset) GROUP BY 1, 2 ORDER BY 1, 2"
        " ON CONFLICT (topic, partition) DO UPDATE SET updated_at = clock_timestamp(),"
        "  next_offset = greatest(w.next_offset, excluded.next_offset)",
        (list(ids),),
    )


@dataclass(frozen=True)
class Outbox:
    """What waits for the indexes: `oldest` is when the oldest batch was committed (epoch seconds)."""

    rows: int = 0
    first_id: float = float("inf")
    last_id: int = 0
    oldest: float | None = None


def outbox(conn: Connection, chain: str) -> Outbox:
    """Look at a chain's outbox."""
    row = conn.execute(
        "SELECT count(*), min(id), max(id), extract(epoch FROM min(committed_at))::float8 FROM ops.search_outbox"
        " WHERE chain = %s",
        (chain,),
    ).fetchone()
    return Outbox(*row) if row and row[0] else Outbox()


class Follower:
    """Follows one chain in a thread beside a lane; what fails is logged and tried again, and never the lane's matter.

    Several may follow the same chain (a lane each): they take turns.
    """

    def __init__(self, settings: Settings, chain: str, interval_s: float = 0.8) -> None:
        """`interval_s`: at least that long from one cycle's start to the next; a block that several batches touch in
        the meantime is written once."""
        registered = load_chains(settings.chains_file).get(chain)
        self._settings, self._chain, self._interval_s = settings, chain, interval_s
        self._quotes = registered.quote_tokens if registered else ()
        self._opensearch = client(settings)
        self._conn: Connection | None = None
        self._indexes_there = False
        self._outbox = Outbox()
        self._committed: float | None = None
        self._lane_is_full = False
        self._rested_at = 0.0
        self._wake, self._stop = threading.Event(), threading.Event()
        self._give_up_at = float("inf")
        self._thread = threading.Thread(target=self._run, name=f"search-{chain}", daemon=True)

    @property
    def behind_s(self) -> float:
        """Seconds since the oldest commit that the indexes may not have; 0 when they have all. A search sees a document
        at most one refresh interval (1 s) after the index has it."""
        since = [at for at in (self._outbox.oldest, self._committed) if at is not None]
        return max(0.0, time.time() - min(since)) if since else 0.0

    @property
    def pending(self) -> int:
        """Committed batches that the indexes may not have, as of the last look."""
        return self._outbox.rows

    def start(self) -> None:
        """Start following; first what an earlier run left."""
        self.wake()
        self._thread.start()

    def wake(self, full: bool = False) -> None:
        """Something was committed; `full`: the lane has a backlog and commits full batches. Following them one by one
        would take the processors from it, so the indexes wait until it has caught up, or for a while."""
        self._lane_is_full = full
        if self._committed is None:
            self._committed = time.time()
        self._wake.set()

    def close(self, drain_timeout_s: float, at_most: Callable[[], float] = lambda: float("inf")) -> None:
        """Stop when the indexes have all that is committed by now, or when the time is up; what is left is left to the
        next follower. `at_most`: seconds that are left, asked again and again. Closing again does nothing."""
        self._give_up_at = time.monotonic() + drain_timeout_s
        self._stop.set()
        self._wake.set()
        while self._thread.is_alive() and time.monotonic() < self._give_up_at + 2 * _RETRY_FOR_S:
            self._thread.join(0.1)
            self._give_up_at = min(self._give_up_at, time.monotonic() + at_most())

    def _run(self) -> None:
        pause, more, last_id = self._interval_s, True, None
        while True:
            rested = time.monotonic()
            while self._lane_is_full and not self._stop.is_set() and time.monotonic() - rested < _REST_S:
                self._stop.wait(self._interval_s)
            if not (more or self._outbox.rows):
                self._wake.wait(_POLL_S)
            self._wake.clear()
            stopping, started = self._stop.is_set(), time.monotonic()
            try:
                conn = self._connected()
                self._look(conn)
                self._ensure_indexes()
                if stopping and last_id is None:
                    last_id = self._outbox.last_id
                if more or self._outbox.rows:
                    self._rested_at = time.perf_counter()
                    progress = follow_once(conn, self._opensearch, self._chain, self._quotes, self._rest)
                    more = progress.more
                    log.debug("%s: %s in %.2f s", self._chain, progress, time.monotonic() - started)
                    if progress.conflicts:
                        log.warning(
                            "%s: %d documents are newer in the index than in the database; if the database was"
                            " restored, `dash-pipeline search rebuild` the indexes",
                            self._chain, progress.conflicts,
                        )  # fmt: skip
                    self._look(conn)
                rest, pause = self._interval_s - (time.monotonic() - started), self._interval_s
            except Exception as error:
                self._failed(error, pause)
                more, rest, pause = True, pause, min(2 * pause, _LONGEST_PAUSE_S)
            done = not more and self._outbox.first_id > (last_id or 0)
            if stopping and (done or time.monotonic() >= self._give_up_at):
                break
            if stopping:
                time.sleep(0.05)
            else:
                self._stop.wait(max(0.0, rest))
        self._disconnect()

    def _rest(self) -> None:
        """Leave the processors to the lane for a while: its commits go through many hands, each of which would wait
        for a turn."""
        if not self._stop.is_set():
            worked = time.perf_counter() - self._rested_at
            self._stop.wait(_REST * worked * max(0.0, 1 - self.behind_s / _PATIENCE_S))
        self._rested_at = time.perf_counter()

    def _connected(self) -> Connection:
        if self._conn is None:
            self._conn = connect(self._settings)
        return self._conn

    def _ensure_indexes(self) -> None:
        if not self._indexes_there:
            for name in indexes.ensure(self._settings, [self._chain]):
                log.info("%s: made; if there are blocks already, `dash-pipeline search rebuild` fills it", name)
            self._indexes_there = True

    def _disconnect(self) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    def _look(self, conn: Connection) -> None:
        # A commit is told of after it is made: what was told before this is in the outbox now.
        self._committed = None
        self._outbox = outbox(conn, self._chain)

    def _failed(self, error: Exception, pause: float) -> None:
        # The connection may be in the middle of anything, and holds the chain.
        self._disconnect()
        self._indexes_there = self._indexes_there and not isinstance(error, IndexMissing)
        if isinstance(error, DashError | psycopg.OperationalError | OpenSearchException):
            log.warning("%s: %s; the index is %.0f s behind, trying again in %.1f s",
                        self._chain, one_line(error), self.behind_s, pause)  # fmt: skip
        else:
            log.error("%s: the index could not be brought up to date, trying again", self._chain, exc_info=error)
