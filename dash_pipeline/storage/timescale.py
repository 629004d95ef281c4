"""The hot store: rows, offsets, dead letters and the block tree in TimescaleDB.

Belongs here: SQL. Does not belong here: what is decided between statements (`dash_pipeline/microbatch/commit.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import polars as pl
import psycopg
from psycopg import sql
from psycopg.types.enum import EnumInfo, register_enum

from dash_pipeline.errors import DashError, Unavailable, first_line
from dash_pipeline.events.reorgs import Block, Outcome, Status
from dash_pipeline.settings import Settings
from dash_pipeline.storage.copy import encode
from dash_pipeline.storage.tables import TABLES, Table
from dash_pipeline.topics import Partition

Connection = psycopg.Connection[tuple[Any, ...]]
Cursor = psycopg.Cursor[tuple[Any, ...]]
# A block heard of: hash, height, status, timestamp.
BlockRow = tuple[bytes, int, Status, datetime]

# A dead letter's payload in the table; the whole message is on the dead-letter topic.
PAYLOAD_KEPT = 64 << 10


# What PostgreSQL says of a value that it cannot hold; the latter two are too long for an index, or nested too deeply.
NOT_STORABLE = (psycopg.DataError, psycopg.errors.ProgramLimitExceeded, psycopg.errors.StatementTooComplex)


# Of a client whose machine is gone the server lets go within half a minute, not after two hours: it may hold locks
# that its successor waits for.
_NOTICE_THE_DEAD = "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=4"


class Fenced(DashError):
    """This run's partitions are no longer its own: another run has claimed them, or their offsets were set anew."""


def connect(settings: Settings) -> Connection:
    """An autocommit connection with the types of schema `ops` known to it.

    Raises Unavailable with one line when the database cannot be reached.
    """
    dsn = settings.timescale_dsn.get_secret_value()
    try:
        conn = psycopg.connect(
            dsn, autocommit=True, connect_timeout=10, keepalives_idle=10, tcp_user_timeout=30_000,
            application_name="dash-pipeline", options=f"-c timezone=UTC {_NOTICE_THE_DEAD}",
        )  # fmt: skip
    except psycopg.OperationalError as error:
        raise Unavailable(f"database: {first_line(error)}") from error
    info = EnumInfo.fetch(conn, "ops.block_status")
    if info is None:
        conn.close()
        raise DashError("database: schema `ops` is missing; `dash-pipeline prepare` makes it")
    register_enum(info, conn, Status, mapping={status: status.value for status in Status})
    return conn


@contextmanager
def session(settings: Settings) -> Iterator[Connection]:
    """A connection of `connect()` for a piece of work that begins anew when it fails: Unavailable with one line when
    the database goes away in between."""
    try:
        with connect(settings) as conn:
            yield conn
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise Unavailable(f"database: {first_line(error)}") from error


def of_chain(alias: str) -> str:
    """SQL: the row is of the chain; no index that begins with the chain is used for it."""
    return f"{alias}.chain IS NOT DISTINCT FROM %(chain)s"


def newest_times(conn: Connection, settings: Settings) -> dict[str, datetime]:
    """Chain -> the time (UTC) that its windows end at, when something is to be removed behind them.

    A block's timestamp is what its producer says. The oldest of the newest `settle_blocks` + 1 blocks counts, and never
    more than `wall_clock_gap_s` of this machine's future: one block from the year 2100 removes nothing early.
    """
    rows = conn.execute(
        "SELECT c.chain, least(n.newest, clock_timestamp() + %s) FROM ops.chains c CROSS JOIN LATERAL"
        " (SELECT min(ts) AS newest FROM (SELECT ts FROM chain.blocks b WHERE b.chain = c.chain"
        "  ORDER BY b.block_number DESC LIMIT %s) b) n WHERE n.newest IS NOT NULL ORDER BY 1",
        (timedelta(seconds=settings.wall_clock_gap_s), settings.settle_blocks + 1),
    ).fetchall()
    return dict(rows)


def chunks(conn: Connection, table: str, before: datetime) -> list[str]:
    """A hypertable's chunks that begin before this time, the oldest first."""
    rows = conn.execute(
        "SELECT format('%%I.%%I', chunk_schema, chunk_name) FROM timescaledb_information.chunks"
        " WHERE format('%%I.%%I', hypertable_schema, hypertable_name) = %s AND range_start < %s ORDER BY range_start",
        (table, before),
    ).fetchall()
    return [chunk for (chunk,) in rows]


def relation_bytes(conn: Connection, tables: Iterable[str]) -> dict[str, int]:
    """What each of these tables takes with its indexes, in bytes; hypertables with their chunks."""
    rows = conn.execute(
        "SELECT name, coalesce(hypertable_size(name::regclass), pg_total_relation_size(name::regclass))"
        " FROM unnest(%s::text[]) t(name)",
        (list(tables),),
    ).fetchall()
    return dict(rows)


def drop_chunk(conn: Connection, table: str, chunk: str) -> None:
    """Drop one chunk of a hypertable, which the transaction has locked."""
    # A span that is this chunk's own: no other chunk lies in it.
    conn.execute(
        "SELECT drop_chunks(%s, older_than => range_end, newer_than => range_start)"
        " FROM timescaledb_information.chunks WHERE format('%%I.%%I', chunk_schema, chunk_name) = %s",
        (table, chunk),
    )


# ---------------------------------------------------------------------------------------------- offsets


def committed_offsets(conn: Connection) -> dict[Partition, int]:
    """The next offset to ingest of every partition ever claimed."""
    rows = conn.execute("SELECT topic, partition, next_offset FROM ops.stream_offsets").fetchall()
    return {(topic, partition): offset for topic, partition, offset in rows}


def claim(conn: Connection, first_offsets: Mapping[Partition, int], run_id: str) -> dict[Partition, int]:
    """Make these partitions this run's, at their first offsets where they are new; returns the committed offsets.

    Waits for a batch that their owner has in hand; from then on the owner is fenced. A run claims once: it would take
    its partitions back from its successor otherwise.
    """
    topics, partitions = zip(*first_offsets, strict=True)
    rows = conn.execute(
        # In the order of _locked_offsets: two that wait for each other would end in a deadlock.
        "INSERT INTO ops.stream_offsets AS o (topic, partition, next_offset, run_id)"
        " SELECT n.*, %s FROM unnest(%s::text[], %s::int[], %s::int8[]) AS n(topic, partition, next) ORDER BY 2, 3"
        " ON CONFLICT (topic, partition) DO UPDATE SET run_id = excluded.run_id"
        " RETURNING topic, partition, next_offset",
        (run_id, list(topics), list(partitions), list(first_offsets.values())),
    ).fetchall()
    return {(topic, partition): offset for topic, partition, offset in rows}


def claimed(conn: Connection, partitions: Collection[Partition], run_id: str) -> dict[Partition, int]:
    """The committed offsets of partitions that this run has claimed before. Raises Fenced when they are another's."""
    rows = _select_offsets(conn, partitions).fetchall()
    offsets = {(topic, partition): offset for topic, partition, offset, _ in rows}
    _check_offsets(rows, dict.fromkeys(partitions, 0) | offsets, run_id)
    return offsets


def forget_offsets(conn: Connection, topic: str) -> int:
    """Let a topic be ingested from its first offset again; rows that are there already stay as they are. Returns how
    many partitions were forgotten."""
    return conn.execute("DELETE FROM ops.stream_offsets WHERE topic = %s", (topic,)).rowcount


def lock_offsets(conn: Connection, expected: Mapping[Partition, int], run_id: str) -> None:
    """Lock the offset rows for this transaction. Raises Fenced unless they are this run's, and where it left them."""
    _check_offsets(_locked_offsets(conn, expected).fetchall(), expected, run_id)


def _locked_offsets(conn: Connection, partitions: Iterable[Partition]) -> Cursor:
    return _select_offsets(conn, partitions, " ORDER BY topic, partition FOR UPDATE")


def _select_offsets(conn: Connection, partitions: Iterable[Partition], how: str = "") -> Cursor:
    topics, numbers = zip(*sorted(partitions), strict=True)
    return conn.execute(
        "SELECT topic, partition, next_offset, run_id FROM ops.stream_offsets"
        f" WHERE (topic, partition) IN (SELECT * FROM unnest(%s::text[], %s::int[])){how}",
        (list(topics), list(numbers)),
        prepare=True,
    )


def _check_offsets(rows: Iterable[tuple[Any, ...]], expected: Mapping[Partition, int], run_id: str) -> None:
    found = {(topic, partition): (offset, owner) for topic, partition, offset, owner in rows}
    for (topic, partition), left_at in expected.items():
        offset, owner = found.get((topic, partition), (None, run_id))
        if owner != run_id:
            raise Fenced(f"handed over to run {owner}")
        if offset != left_at:
            raise Fenced(
                f"{topic}/{partition}: the committed offset is {offset}, this run left it at {left_at}: it was set anew"
            )


def advance_offsets(conn: Connection, offsets: Mapping[Partition, int], run_id: str) -> None:
    """Set the next offsets, in the transaction that holds their rows' locks."""
    topics, partitions = zip(*offsets, strict=True)
    conn.execute(
        "UPDATE ops.stream_offsets o SET next_offset = n.next, updated_at = clock_timestamp(), run_id = %s"
        " FROM unnest(%s::text[], %s::int[], %s::int8[]) AS n(topic, partition, next)"
        " WHERE o.topic = n.topic AND o.partition = n.partition",
        (run_id, list(topics), list(partitions), list(offsets.values())),
        prepare=True,
    )


# ---------------------------------------------------------------------------------------------- rows


@dataclass
class Writer:
    """Inserts frames. Remembers which tables met rows they already held: those go through a staging table first, until
    a batch has none."""

    conn: Connection
    replayed: set[str] = field(default_factory=set)

    def insert_together(self, tables: Sequence[tuple[Table, Sequence[pl.DataFrame]]]) -> bool:
        """Insert into schema `chain`, as long as all rows are new and storable; False and nothing inserted if not."""
        if any(table.name in self.replayed for table, _ in tables):
            return False
        try:
            with self.conn.transaction():
                for table, frames in tables:
                    self._copy(encode(frames, table), sql.Identifier("chain", table.name), table)
        except (psycopg.errors.UniqueViolation, *NOT_STORABLE):
            return False
        return True

    def insert(self, table: Table, frames: Sequence[pl.DataFrame]) -> int:
        """Insert into schema `chain` what it does not hold yet; the number of rows that were new.

        Raises one of NOT_STORABLE when a value is not; the transaction goes on.
        """
        count = sum(frame.height for frame in frames)
        if self.insert_together([(table, frames)]):
            return count
        new = self._staged(encode(frames, table), "chain", table)
        if new == count:
            self.replayed.discard(table.name)
        else:
            self.replayed.add(table.name)
        return new

    def insert_aside(self, table: Table, frames: Sequence[pl.DataFrame]) -> int:
        """The same into schema `side`, where rows of other branches wait."""
        return self._staged(encode(frames, table), "side", table)

    def _staged(self, data: bytes, schema: str, table: Table) -> int:
        stage = sql.Identifier(f"stage_{schema}_{table.name}")
        target = sql.Identifier(schema, table.name)
        with self.conn.transaction():
            self.conn.execute(
                sql.SQL("CREATE TEMP TABLE IF NOT EXISTS {} (LIKE {}) ON COMMIT DELETE ROWS").format(stage, target)
            )
            self._copy(data, stage, table)
            inserted = self.conn.execute(
                sql.SQL("INSERT INTO {} SELECT * FROM {} ON CONFLICT DO NOTHING").format(target, stage)
            )
            return inserted.rowcount

    def _copy(self, data: bytes, target: sql.Identifier, table: Table) -> None:
        columns = sql.SQL(", ").join(map(sql.Identifier, table.columns))
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(target, columns)
        with self.conn.cursor() as cursor, cursor.copy(statement) as copy:
            copy.write(data)


def move_blocks(conn: Connection, chain: str, blocks: Mapping[bytes, datetime], source: str, target: str) -> int:
    """Move every row of these blocks (hash -> timestamp) from one schema to the other; the number of rows moved."""
    if not blocks:
        return 0
    moved = 0
    for name in TABLES:
        result = conn.execute(
            sql.SQL(
                "WITH moved AS (DELETE FROM {} WHERE chain = %s AND block_hash = ANY(%s)"
                " AND ts BETWEEN %s AND %s RETURNING *) INSERT INTO {} SELECT * FROM moved ON CONFLICT DO NOTHING"
            ).format(sql.Identifier(source, name), sql.Identifier(target, name)),
            (chain, list(blocks), min(blocks.values()), max(blocks.values())),
        )
        moved += result.rowcount
    return moved


# ---------------------------------------------------------------------------------------------- dead letters


@dataclass(frozen=True)
class DeadLetter:
    """A message that is not a row: where it was, what it held, why it was not taken."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    payload: bytes
    reason: str


def write_dead_letters(conn: Connection, letters: Iterable[DeadLetter], run_id: str) -> None:
    """Record dead letters; one that was recorded before stays as it was."""
    with conn.cursor() as cursor:
        cursor.executemany(
            'INSERT INTO ops.dead_letters (topic, partition, "offset", reason, payload, payload_bytes,'
            " payload_sha256, record_ts, run_id) VALUES (%s, %s, %s, %s, %s, %s, sha256(%s),"
            " to_timestamp(%s / 1000.0), %s) ON CONFLICT DO NOTHING",
            [
                (x.topic, x.partition, x.offset, x.reason[:2000].replace("\0", ""), x.payload[:PAYLOAD_KEPT],
                 len(x.payload), x.payload, x.timestamp_ms, run_id)
                for x in letters
            ],
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------- the block tree


def lock_chain(conn: Connection, chain: str, *, exclusive: bool) -> None:
    """Hold the chain's tree for this transaction: rows of many lanes go in side by side, a block changes it alone."""
    shared = "" if exclusive else "_shared"
    conn.execute(f"SELECT pg_advisory_xact_lock{shared}(hashtextextended('chain:' || %s, 0))", (chain,), prepare=True)


def open_batch(
    transaction: ExitStack,
    conn: Connection,
    chain: str,
    expected: Mapping[Partition, int],
    run_id: str,
    heights: Sequence[int] = (),
    *,
    exclusive: bool,
) -> list[BlockRow]:
    """Begin a batch's transaction, in one round trip: holds the chain's tree and the offsets. Returns the blocks heard
    of at these heights. Raises Fenced when one of the partitions is no longer this run's."""
    with conn.pipeline():
        # conn.transaction() would keep the pipeline open, in which nothing can be copied.
        transaction.enter_context(psycopg.Transaction(conn))
        lock_chain(conn, chain, exclusive=exclusive)
        locked = _locked_offsets(conn, expected)
        known = conn.execute(
            "SELECT block_hash, block_number, status, ts FROM ops.block_tree"
            " WHERE chain = %s AND block_number = ANY(%s::int8[])",
            (chain, list(heights)),
            prepare=True,
        )
        _check_offsets(locked.fetchall(), expected, run_id)
        return known.fetchall()


def commit_batch(
    transaction: ExitStack,
    conn: Connection,
    chain: str,
    fresh: Sequence[BlockRow],
    touched: Mapping[bytes, datetime],
    offsets: Mapping[Partition, int],
    run_id: str,
) -> None:
    """End and commit a batch's transaction, in one round trip: blocks of which only rows have arrived, the blocks that
    the search indexes are to look at, the next offsets."""
    with conn.pipeline():
        if fresh:
            register_blocks(conn, chain, fresh)
        if touched:
            write_outbox(conn, chain, touched, offsets)
        advance_offsets(conn, offsets, run_id)
        transaction.close()


def register_blocks(conn: Connection, chain: str, blocks: Iterable[BlockRow]) -> None:
    """Remember blocks of which only rows have arrived. In the order of their hashes: two lanes that register the same
    blocks wait for each other instead of deadlocking."""
    hashes, numbers, statuses, times = zip(*sorted(blocks), strict=True)
    conn.execute(
        "INSERT INTO ops.block_tree (chain, block_hash, block_number, ts, status)"
        " SELECT %s, * FROM unnest(%s::bytea[], %s::int8[], %s::timestamptz[], %s::text[]::ops.block_status[])"
        " ON CONFLICT DO NOTHING",
        (chain, list(hashes), list(numbers), list(times), [s.value for s in statuses]),
        prepare=True,
    )


@dataclass(frozen=True)
class Chain:
    """A chain's tip and the height that no fork may go below."""

    tip_number: int | None = None
    tip_at: datetime | None = None
    finalised: int = -1


def chain_state(conn: Connection, chain: str) -> Chain:
    """Where the chain is; an unknown chain has no tip."""
    row = conn.execute(
        "SELECT tip_number, tip_ts, finalised_number FROM ops.chains WHERE chain = %s", (chain,)
    ).fetchone()
    return Chain(*row) if row else Chain()


def known_blocks(conn: Connection, chain: str, heights: Iterable[int], from_height: int) -> dict[bytes, Block]:
    """The blocks at and beside these heights, and all from `from_height` up."""
    wanted = sorted({n + d for n in heights for d in (-1, 0, 1)})
    rows = conn.execute(
        'SELECT block_hash, block_number, parent_hash, coalesce(seen_ms, 0), coalesce("offset", 0), status'
        " FROM ops.block_tree WHERE chain = %s AND (block_number = ANY(%s) OR block_number >= %s)",
        (chain, wanted, from_height),
    ).fetchall()
    return {row[0]: Block(row[0], row[1], row[2], (row[3], row[4]), row[5]) for row in rows}


def write_tree(conn: Connection, chain: str, announced: pl.DataFrame, outcome: Outcome) -> dict[bytes, datetime]:
    """Write what became of the blocks: `announced` are the arriving ones (block_hash, block_number, parent_hash, ts,
    seen_ms, topic, partition, offset; oldest first), `outcome` what was decided. Returns the timestamps of those that
    changed."""
    with conn.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE IF NOT EXISTS announced (LIKE ops.block_tree) ON COMMIT DELETE ROWS")
        with cursor.copy(
            "COPY announced (chain, block_hash, block_number, parent_hash, ts, status, seen_ms, topic, partition,"
            ' "offset", updated_at) FROM STDIN'
        ) as copy:
            for row in announced.unique("block_hash", keep="last", maintain_order=True).iter_rows(named=True):
                copy.write_row((chain, row["block_hash"], row["block_number"], row["parent_hash"], row["ts"],
                                Status.UNSEEN.value, row["seen_ms"], row["topic"], row["partition"], row["offset"],
                                "now"))  # fmt: skip
        cursor.execute(
            "INSERT INTO ops.block_tree AS t SELECT * FROM announced ON CONFLICT (chain, block_hash) DO UPDATE SET"
            " parent_hash = excluded.parent_hash, ts = excluded.ts, topic = excluded.topic,"
            ' partition = excluded.partition, "offset" = excluded."offset", updated_at = clock_timestamp(),'
            " seen_ms = excluded.seen_ms"
            ' WHERE t.seen_ms IS NULL OR (t.seen_ms, t."offset") <= (excluded.seen_ms, excluded."offset")'
        )
        changed = {block_hash: after for block_hash, (_, after) in outcome.changed.items()}
        cursor.execute(
            "UPDATE ops.block_tree t SET status = n.status, updated_at = clock_timestamp() FROM"
            " unnest(%s::bytea[], %s::text[]::ops.block_status[]) AS n(block_hash, status)"
            " WHERE t.chain = %s AND t.block_hash = n.block_hash RETURNING t.block_hash, t.ts",
            (list(changed), [status.value for status in changed.values()], chain),
        )
        times: dict[bytes, datetime] = dict(cursor.fetchall())
        if outcome.tip is not None:
            cursor.execute(
                "INSERT INTO ops.chains AS c (chain, tip_number, tip_hash, tip_ts, finalised_number)"
                " SELECT chain, block_number, block_hash, ts, %s FROM ops.block_tree"
                " WHERE chain = %s AND block_hash = %s ON CONFLICT (chain) DO UPDATE SET"
                " tip_number = excluded.tip_number, tip_hash = excluded.tip_hash, tip_ts = excluded.tip_ts,"
                " finalised_number = greatest(c.finalised_number, excluded.finalised_number), updated_at = now()",
                (outcome.finalised, chain, outcome.tip.hash),
            )
    return times


def write_reorg(conn: Connection, chain: str, outcome: Outcome, restored: int, rows_moved: int, run_id: str) -> None:
    """Record a reorg for the operators."""
    reorg = outcome.reorg
    assert reorg is not None
    orphaned = sum(
        before is Status.CANONICAL and after is not Status.CANONICAL for before, after in outcome.changed.values()
    )
    conn.execute(
        "INSERT INTO ops.reorgs (chain, depth, fork_number, old_tip_number, old_tip_hash, new_tip_number, new_tip_hash,"
        " orphaned_blocks, restored_blocks, rows_moved, run_id) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (chain, reorg.depth, reorg.fork_number, reorg.old_tip.number, reorg.old_tip.hash, reorg.new_tip.number,
         reorg.new_tip.hash, orphaned, restored, rows_moved, run_id),
    )  # fmt: skip


def give_up_detached(
    conn: Connection, chain: str, after_s: float, run_id: str, publish: Callable[[list[DeadLetter]], None]
) -> int:
    """Refuse blocks whose parent has not come for `after_s` seconds: dead letters that name both hashes. How many."""
    with conn.transaction():
        lock_chain(conn, chain, exclusive=True)
        rows = conn.execute(
            "WITH refused AS (UPDATE ops.block_tree SET status = 'refused', updated_at = clock_timestamp()"
            "  WHERE chain = %s AND status = 'detached' AND updated_at < clock_timestamp() - %s * interval '1 second'"
            "  RETURNING *)"
            ' SELECT r.topic, r.partition, r."offset", r.seen_ms, r.block_number, r.block_hash, r.parent_hash,'
            " c.block_hash FROM refused r LEFT JOIN ops.block_tree c ON c.chain = r.chain"
            " AND c.block_number = r.block_number AND c.status = 'canonical' ORDER BY r.block_number",
            (chain, after_s),
        ).fetchall()
        letters = [
            DeadLetter(
                topic, partition, offset, seen_ms, b"",
                f"block {number} 0x{block.hex()} contradicts the stored block 0x{stored.hex() if stored else '?'} and"
                f" its parent 0x{parent.hex()} is not known: another chain's block, or a fork that was not sent whole",
            )
            for topic, partition, offset, seen_ms, number, block, parent, stored in rows
        ]  # fmt: skip
        if letters:
            write_dead_letters(conn, letters, run_id)
            publish(letters)
    return len(letters)


def write_outbox(
    conn: Connection, chain: str, blocks: Mapping[bytes, datetime], offsets: Mapping[Partition, int]
) -> None:
    """Tell the search indexes which blocks this transaction touched, and up to which offsets."""
    topics, partitions = zip(*offsets, strict=True)
    conn.execute(
        "INSERT INTO ops.search_outbox (chain, blocks, ts_min, ts_max, topics, partitions, next_offsets)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s)",
        (chain, list(blocks), min(blocks.values()), max(blocks.values()), list(topics), list(partitions),
         list(offsets.values())),
        prepare=True,
    )  # fmt: skip


def unindexed(conn: Connection) -> frozenset[str]:
    """Chains with committed micro-batches that the search indexes do not show yet."""
    return frozenset(chain for (chain,) in conn.execute("SELECT DISTINCT chain FROM ops.search_outbox"))


def forget_chain(conn: Connection, chain: str) -> None:
    """Delete everything known of a chain, for local chains that begin anew under the same name."""
    with conn.transaction():
        lock_chain(conn, chain, exclusive=True)
        tables = conn.execute(
            "SELECT c.table_schema, c.table_name FROM information_schema.columns c"
            " JOIN information_schema.tables t USING (table_schema, table_name)"
            " WHERE c.column_name = 'chain' AND c.table_schema IN"
            "  ('chain', 'side', 'rollup', 'ops', 'intel', 'recalled', 'analytics')"
            " AND t.table_type = 'BASE TABLE'"
        ).fetchall()
        for table in tables:
            conn.execute(sql.SQL("DELETE FROM {} WHERE chain = %s").format(sql.Identifier(*table)), (chain,))
