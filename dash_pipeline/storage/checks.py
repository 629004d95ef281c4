"""What must hold of every stored block, as SQL.

Belongs here: which blocks may be judged, and which of them are wrong. Does not belong here: when checks run and how
they are shown (`assets/ingestion/checks.py`).

A block is judged only when it is *settled* and the feed *carried* what is counted:

- Settled: everything that Kafka held of the topics in question, at a moment when the chain's tip was at least
  `settle_blocks` above the block, is committed. (`Settling` remembers such moments. Lag that is zero at the end is
  not enough: the exporter may be in the middle of a block; lag that is not zero is no obstacle: it may be newer.)
- Carried: among the neighbours of the block, without a gap in the numbers, at least one has rows of that kind. A
  backfill of blocks and transactions only has no logs, and nothing is wrong with it; a feed of logs without blocks
  is not judged at all, because what is expected is read from the block. A feed that stops carrying a kind of row is
  what `rows_behind_blocks` is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dash_pipeline.topics import Partition, chain_topics, topic_name

if TYPE_CHECKING:
    from dash_pipeline.storage.timescale import Connection

Range = tuple[int, int]

#: ERC-20's and ERC-721's Transfer(address,address,uint256).
TRANSFER = bytes.fromhex("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef")

# How far around a range is looked for neighbours that carried rows, and how many blocks one statement counts.
NEIGHBOURS = 64
SLICE = 1_000
# The newest blocks in which the newest rows are looked for.
RECENT = 200
# Failing blocks that are named; the rest are counted.
NAMED = 20


@dataclass(frozen=True)
class BlockCheck:
    """A rule per block. `counts` yields what is `expected` of block `b`, what is `found`, and whether it `carried`
    such rows."""

    name: str
    table: str
    types: tuple[str, ...]
    about: str
    counts: str


COUNTED = BlockCheck(
    "transactions_counted",
    "transactions",
    ("block", "transaction"),
    "Each block has as many transactions as its `transaction_count` says.",
    """
    SELECT b.transaction_count AS expected, count(*) AS found, count(*) > 0 AS carried
    FROM chain.transactions t WHERE t.chain = b.chain AND t.block_hash = b.block_hash AND t.ts = b.ts
    """,
)
WHOLE = BlockCheck(
    "log_indexes_whole",
    "logs",
    ("block", "log"),
    "Each block's log indexes run from 0 without holes; a block whose bloom filter has bits has logs.",
    """
    SELECT coalesce(max(log_index) + 1, CASE WHEN bit_count(b.logs_bloom) > 0 THEN 1 ELSE 0 END) AS expected,
           count(*) AS found, count(*) > 0 AS carried
    FROM chain.logs l WHERE l.chain = b.chain AND l.block_hash = b.block_hash AND l.ts = b.ts
    """,
)
# ethereum-etl takes a log for a transfer when its topics and its data, cut into words of 32 bytes, are four.
MATCHED = BlockCheck(
    "transfers_match_logs",
    "token_transfers",
    ("block", "log", "token_transfer"),
    "Each block has one token transfer for each Transfer log with four words in topics and data.",
    f"""
    SELECT l.expected, t.found, l.expected > 0 AND t.found > 0 AS carried
    FROM (SELECT count(*) AS expected FROM chain.logs l
          WHERE l.chain = b.chain AND l.block_hash = b.block_hash AND l.ts = b.ts
          AND l.topic0 = '\\x{TRANSFER.hex()}'
          AND num_nonnulls(topic0, topic1, topic2, topic3) + ceil(length(data) / 32.0) = 4) l,
         (SELECT count(*) AS found FROM chain.token_transfers t
          WHERE t.chain = b.chain AND t.block_hash = b.block_hash AND t.ts = b.ts) t
    """,
)
BLOCK_CHECKS = (COUNTED, WHOLE, MATCHED)

# `island` is the same number for blocks whose heights follow each other without a gap.
_NEAR = """
    SELECT b.block_number, b.block_hash, b.ts, n.*,
           b.block_number - row_number() OVER (ORDER BY b.block_number) AS island
    FROM (SELECT * FROM chain.blocks WHERE chain = %(chain)s AND {where}) b CROSS JOIN LATERAL ({counts}) n
"""
_JUDGE = """
WITH near AS ({near}), judged AS (
    SELECT * FROM (SELECT *, bool_or(carried) OVER (PARTITION BY island) AS feed_carries FROM near) n
    WHERE feed_carries AND expected IS NOT NULL AND block_number BETWEEN %(first)s AND %(last)s
), wrong AS (
    SELECT * FROM judged WHERE found <> expected
)
SELECT (SELECT count(*) FROM judged), (SELECT count(*) FROM wrong),
       ARRAY(SELECT jsonb_build_object('block_number', block_number, 'expected', expected, 'found', found,
                                       'block_hash', '0x' || encode(block_hash, 'hex'))
             FROM wrong ORDER BY block_number LIMIT {named})
"""
_BEHIND = """
WITH near AS ({near}), newest AS (
    SELECT * FROM near WHERE island = (SELECT max(island) FROM near)
)
SELECT CAST(extract(epoch FROM due - had) AS float8)
FROM (SELECT max(ts) FILTER (WHERE expected > 0) AS due, max(ts) FILTER (WHERE found > 0) AS had FROM newest) n
"""


@dataclass(frozen=True)
class Verdict:
    """What a check found: blocks judged, blocks that are wrong, and the first of those."""

    judged: int = 0
    wrong: int = 0
    examples: tuple[Mapping[str, Any], ...] = ()

    def __add__(self, other: Verdict) -> Verdict:
        examples = (self.examples + other.examples)[:NAMED]
        return Verdict(self.judged + other.judged, self.wrong + other.wrong, examples)


def judge(conn: Connection, check: BlockCheck, chain: str, ranges: Iterable[Range]) -> Verdict:
    """Hold every stored block of these (first, last) heights against the rule."""
    window = f"block_number BETWEEN %(first)s - {NEIGHBOURS} AND %(last)s + {NEIGHBOURS}"
    near = _NEAR.format(where=window, counts=check.counts)
    statement = _JUDGE.format(near=near, named=NAMED)
    verdict = Verdict()
    for first, last in slices(_stored(conn, chain, ranges)):
        row = conn.execute(statement, {"chain": chain, "first": first, "last": last}).fetchone()
        assert row is not None
        verdict += Verdict(row[0], row[1], tuple(row[2]))
    return verdict


def _stored(conn: Connection, chain: str, ranges: Iterable[Range]) -> list[Range]:
    """The parts of the ranges that hold blocks: a run may touch block 100 and block 17,000,000."""
    return [
        island
        for first, last in ranges
        for island in conn.execute(
            "SELECT min(block_number), max(block_number) FROM"
            " (SELECT block_number, block_number - row_number() OVER (ORDER BY block_number) AS island"
            "  FROM chain.blocks WHERE chain = %s AND block_number BETWEEN %s AND %s) b GROUP BY island",
            (chain, first, last),
        ).fetchall()
    ]


def rows_behind_blocks(conn: Connection, check: BlockCheck, chain: str, upto: int) -> float | None:
    """Seconds of the chain's time from the newest block with rows to the newest block that should have some.

    None when there is nothing to compare: no block up to height `upto` should have rows, or the feed carries
    none.
    """
    newest = f"block_number <= %(upto)s ORDER BY block_number DESC LIMIT {RECENT}"
    near = _NEAR.format(where=newest, counts=check.counts)
    row = conn.execute(_BEHIND.format(near=near), {"chain": chain, "upto": upto}).fetchone()
    return None if row is None or row[0] is None else max(0.0, row[0])


def quiet_for(conn: Connection, chain: str) -> float:
    """Seconds since anything of the chain was ingested; 0 when nothing ever was."""
    row = conn.execute(
        "SELECT CAST(extract(epoch FROM clock_timestamp() - max(updated_at)) AS float8) FROM ops.stream_offsets"
        " WHERE topic = ANY(%s)",
        (chain_topics(chain),),
    ).fetchone()
    return row[0] or 0.0 if row else 0.0


def wall_clock_gap(conn: Connection, chain: str) -> float | None:
    """Seconds from the newest block's timestamp to now; None without a block."""
    row = conn.execute(
        "SELECT CAST(extract(epoch FROM now() - tip_ts) AS float8) FROM ops.chains WHERE chain = %s", (chain,)
    ).fetchone()
    return row[0] if row else None


def indexes_behind(conn: Connection) -> dict[str, float]:
    """Seconds of each chain's time from the oldest block that the indexes do not show yet to the newest block."""
    return dict(
        conn.execute(
            "SELECT c.chain, coalesce(CAST(extract(epoch FROM c.tip_ts - min(o.ts_min)) AS float8), 0)"
            " FROM ops.chains c LEFT JOIN ops.search_outbox o USING (chain)"
            " GROUP BY c.chain, c.tip_ts ORDER BY 1"
        ).fetchall()
    )


#: For each chain with a block: name, height and time of the newest block, seconds from that time to now, seconds since
#: anything of the chain was committed (null when nothing was), batches that wait for the indexes, and seconds since the
#: oldest of them was committed (0 without any).
CHAINS = """
SELECT c.chain, c.tip_number, c.tip_ts, extract(epoch FROM clock_timestamp() - c.tip_ts)::float8,
 extract(epoch FROM clock_timestamp() - s.committed)::float8, coalesce(o.batches, 0),
 coalesce(extract(epoch FROM clock_timestamp() - o.oldest)::float8, 0)
FROM ops.chains c
LEFT JOIN (SELECT split_part(topic, '.', 1) AS chain, max(updated_at) AS committed FROM ops.stream_offsets GROUP BY 1) s
 USING (chain)
LEFT JOIN (SELECT chain, count(*) AS batches, min(committed_at) AS oldest FROM ops.search_outbox GROUP BY 1) o
 USING (chain)
WHERE c.tip_ts IS NOT NULL ORDER BY c.chain
"""


def recent_range(conn: Connection, chain: str, window_s: float) -> list[Range]:
    """The heights of the blocks of the newest `window_s` seconds of the chain's time."""
    row = conn.execute(
        "SELECT min(b.block_number), max(b.block_number) FROM chain.blocks b JOIN ops.chains c USING (chain)"
        " WHERE b.chain = %s AND b.ts >= c.tip_ts - %s * interval '1 second'",
        (chain, window_s),
    ).fetchone()
    return [(row[0], row[1])] if row and row[0] is not None else []


def tip(conn: Connection, chain: str) -> int | None:
    """The height of the newest canonical block."""
    row = conn.execute("SELECT tip_number FROM ops.chains WHERE chain = %s", (chain,)).fetchone()
    return row[0] if row else None


def topics_of(check: BlockCheck, chain: str) -> frozenset[str]:
    """The topics that must be ingested before the check may judge."""
    return frozenset(topic_name(chain, type_) for type_ in check.types)


class Settling:
    """Remembers how far Kafka went when the chain's tip was where, to know later which blocks have all rows."""

    def __init__(self, settle_blocks: int) -> None:
        self._settle_blocks = settle_blocks
        self._marks: list[tuple[Mapping[Partition, int], int]] = []

    def mark(self, end: Mapping[Partition, int], tip: int) -> None:
        """Remember a moment; `tip` is read before `end`, so that `end` is not behind it."""
        self._marks.append((dict(end), tip))

    def settled(self, committed: Mapping[Partition, int], topics: frozenset[str], *, quiet: bool = False) -> int | None:
        """The height up to which blocks are settled as far as `topics` go; None if no moment is ingested.

        `quiet`: nothing had come for so long before the newest mark that the exporter cannot be in the middle of a
        block; if that mark is ingested, the tip itself has settled.
        """
        for age, (end, tip) in enumerate(reversed(self._marks)):
            if all(committed.get(place, 0) >= offset for place, offset in end.items() if place[0] in topics):
                return tip if quiet and age == 0 else tip - self._settle_blocks
        return None


def clip(ranges: Iterable[Range], upto: int) -> list[Range]:
    """The parts of the ranges at or below a height."""
    return [(first, min(last, upto)) for first, last in ranges if first <= upto]


def slices(ranges: Iterable[Range]) -> Iterator[Range]:
    """The same heights, each once, in pieces of at most SLICE."""
    done: int | None = None
    for first, last in sorted(ranges):
        start = first if done is None else max(first, done + 1)
        for low in range(start, last + 1, SLICE):
            yield low, min(low + SLICE - 1, last)
        done = last if done is None else max(done, last)
