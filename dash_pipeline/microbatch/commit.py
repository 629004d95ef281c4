"""A decoded batch -> the database, in transactions that hold the rows and their offsets together.

Belongs here: the order of things inside a transaction. Does not belong here: SQL (`storage/timescale.py`), fork choice
(`events/reorgs.py`).

Blocks go first, in a transaction of their own that holds the chain's tree alone; it is short, and blocks are few. All
other rows share the tree with other lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import polars as pl

from dash_pipeline.events.abi import pool_events, pools
from dash_pipeline.events.decode import MESSAGE, decode
from dash_pipeline.events.reorgs import IN_TABLES, Block, Outcome, Status, follow, off_the_clock
from dash_pipeline.microbatch.consume import Batch, TopicBatch
from dash_pipeline.microbatch.detect import Detector
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.tables import POOL_EVENTS, POOLS, TABLES, Table
from dash_pipeline.storage.timescale import DeadLetter, Writer
from dash_pipeline.topics import TYPES, Partition

_TYPE_OF = {topic: type_ for type_, topic in TYPES.items()}
# Timestamps of blocks by their hashes; blocks of which rows came first, as `register_blocks` takes them.
Times = dict[bytes, datetime]
Fresh = list[db.BlockRow]

# Further from the tip than that many times the deepest fork, time and height go together.
_FAR = 4

_ORDER = {type_: place for place, type_ in enumerate(TYPES)}


@dataclass
class Part:
    """Messages of one topic, decoded."""

    source: TopicBatch
    type: str
    frame: pl.DataFrame
    letters: list[DeadLetter]


@dataclass
class Committed:
    """What a batch became. `events`: the pool events that went into the canonical tables, a frame per kind; `moved`:
    blocks whose rows changed sides."""

    rows: dict[str, int] = field(default_factory=dict)
    letters: list[DeadLetter] = field(default_factory=list)
    reorgs: int = 0
    anomalies: int = 0
    heights: tuple[int, int] | None = None
    events: list[pl.DataFrame] = field(default_factory=list)
    moved: Times = field(default_factory=dict)

    def count(self, table: Table, rows: int) -> None:
        """Rows that were written to a table."""
        self.rows[table.name] = self.rows.get(table.name, 0) + rows

    def see(self, numbers: pl.Series) -> None:
        """Block numbers that rows of the batch have."""
        if len(numbers):
            self._span((int(numbers.min()), int(numbers.max())))  # type: ignore[arg-type]

    def add(self, other: Committed) -> None:
        """What another batch committed, too."""
        for table, count in other.rows.items():
            self.rows[table] = self.rows.get(table, 0) + count
        self.letters += other.letters
        self.reorgs += other.reorgs
        self.anomalies += other.anomalies
        self._span(other.heights)

    def _span(self, heights: tuple[int, int] | None) -> None:
        ends = [end for span in (self.heights, heights) if span for end in span]
        self.heights = (min(ends), max(ends)) if ends else None


def decode_batch(batch: Batch, chain: str, max_message_bytes: int) -> list[Part]:
    """Decode each topic's messages; what is not a row is a dead letter with its reason."""
    parts = []
    for source in batch.topics:
        type_ = _TYPE_OF[source.topic.removeprefix(f"{chain}.")]
        decoded = decode(source.values, type_, chain, max_message_bytes)
        letters = [letter(source, position, reason) for position, reason in decoded.rejects]
        parts.append(Part(source, type_, decoded.frame, letters))
    return parts


def letter(source: TopicBatch, position: int, reason: str) -> DeadLetter:
    """The dead letter for the message at `position`."""
    return DeadLetter(
        source.topic,
        int(source.partitions[position]),
        int(source.offsets[position]),
        int(source.timestamps[position]),
        source.values[position],
        reason,
    )


@dataclass(frozen=True)
class Rules:
    """What a chain's blocks are held against. `pace_s`: seconds between blocks, at the least, over a long way."""

    max_reorg_depth: int
    genesis: bytes | None = None
    pace_s: float = 0.0


def commit(
    writer: Writer,
    chain: str,
    parts: Sequence[Part],
    expected: Mapping[Partition, int],
    batch: Batch,
    rules: Rules,
    run_id: str,
    publish: Callable[[list[DeadLetter]], None],
    detector: Detector | None = None,
) -> Committed:
    """Commit a batch: its blocks, then its other rows. Raises Fenced when a partition is no longer this run's.

    `detector` brings the anomalies of the pools that a transaction touched up to date in that transaction.

    `publish` is called with the dead letters before their transaction ends: a crash may publish one twice, and loses
    none.
    """
    done = Committed()
    blocks = [part for part in parts if part.type == "block"]
    # Every lane goes through the tables in the same order: two that need each other's locks would end in a deadlock.
    others = sorted((part for part in parts if part.type != "block"), key=lambda part: _ORDER[part.type])
    for group in (blocks, others):
        if not group:
            continue
        topics = {part.source.topic for part in group}
        offsets = {p: offset for p, offset in batch.next_offsets.items() if p[0] in topics}
        mine = {p: expected[p] for p in offsets}
        with ExitStack() as transaction:
            if group is blocks:
                db.open_batch(transaction, writer.conn, chain, mine, run_id, exclusive=True)
                result, touched, fresh = _write_blocks(writer, chain, group, rules, run_id)
            else:
                heights = {number for part in group for number in part.frame["block_number"].to_list()}
                known = db.open_batch(transaction, writer.conn, chain, mine, run_id, sorted(heights), exclusive=False)
                result, touched, fresh = _write_rows(writer, group, known)
            if detector is not None:
                result.anomalies = detector.run(writer.conn, result.events, result.moved, run_id)
            if result.letters:
                db.write_dead_letters(writer.conn, result.letters, run_id)
                publish(result.letters)
            db.commit_batch(transaction, writer.conn, chain, fresh, touched, offsets, run_id)
        done.add(result)
    return done


# ---------------------------------------------------------------------------------------------- rows of blocks


def _write_rows(writer: Writer, parts: Sequence[Part], known: Sequence[db.BlockRow]) -> tuple[Committed, Times, Fresh]:
    """Everything but blocks: into the canonical tables, or aside when another block holds the height. `known`: the
    blocks heard of at the rows' heights. Also returns the blocks touched, and those not heard of before."""
    done = Committed()
    taken = {number for _, number, status, _ in known if status is Status.CANONICAL}
    status = {block_hash: status for block_hash, _, status, _ in known}
    times = {block_hash: ts for block_hash, _, _, ts in known}
    touched: Times = {}
    fresh: Fresh = []
    canonical = []
    for part in parts:
        done.letters += part.letters
        frame = _with_time(part, times, done.letters)
        hashes, row_times = frame["block_hash"].to_list(), frame["ts"].cast(pl.Int64).to_numpy()
        row_of = dict(zip(hashes, range(len(hashes)), strict=True))
        aside = []
        mistimed = bool((row_times != row_times[list(map(row_of.__getitem__, hashes))]).any())
        for block_hash, row in row_of.items():
            ts = times.setdefault(block_hash, frame["ts"][row])
            mistimed |= ts != frame["ts"][row]
            if block_hash not in status:
                number = frame["block_number"][row]
                status[block_hash] = Status.UNSEEN if number in taken else Status.PROVISIONAL
                fresh.append((block_hash, number, status[block_hash], ts))
            touched[block_hash] = ts
            if status[block_hash] not in IN_TABLES:
                aside.append(block_hash)
        if mistimed:  # a block has one time: its rows must be found by it
            frame = frame.with_columns(ts=_block_time(times))
        if aside:
            there = pl.col("block_hash").is_in(pl.Series(aside, dtype=pl.Binary).implode())
            _insert(writer, part, frame.filter(there), done, aside=True)
            frame = frame.filter(~there)
        canonical.append((part, frame))
    _insert_together(writer, canonical, done)
    for part in parts:
        done.see(part.frame["block_number"])
    return done, touched, fresh


def _with_time(part: Part, times: Mapping[bytes, datetime], letters: list[DeadLetter]) -> pl.DataFrame:
    """The rows with a timestamp: their own, or their block's where the block is known; the others are dead letters."""
    frame = part.frame
    if not frame["ts"].null_count():
        return frame
    if times:
        frame = frame.with_columns(ts=pl.coalesce("ts", _block_time(times)))
    letters += [
        letter(part.source, position, "block_timestamp is missing or null, and the block is not stored")
        for position in frame.filter(pl.col("ts").is_null())[MESSAGE]
    ]
    return frame.filter(pl.col("ts").is_not_null())


def _block_time(times: Mapping[bytes, datetime]) -> pl.Expr:
    """The block's timestamp by its hash, null where it is not known."""
    dtype = pl.Datetime("us", "UTC")
    hashes, values = pl.Series(list(times), dtype=pl.Binary), pl.Series(list(times.values()), dtype=dtype)
    return pl.col("block_hash").replace_strict(hashes, values, default=None, return_dtype=dtype)


def _insert_together(writer: Writer, pieces: Sequence[tuple[Part, pl.DataFrame]], done: Committed) -> None:
    """Canonical rows of all parts at once, as nearly every batch allows; else part by part."""
    # A replay is known by its tables, before anything is decoded from their rows for nothing.
    if writer.replayed.isdisjoint(TYPES[part.type] for part, _ in pieces):
        tables: list[tuple[Table, list[pl.DataFrame]]] = []
        for part, frame in pieces:
            if frame.height:
                tables += [(TABLES[TYPES[part.type]], [frame]), *_derived(part, frame)]
        if writer.insert_together(tables):
            for table, frames in tables:
                done.count(table, sum(frame.height for frame in frames))
                if table is POOL_EVENTS:
                    done.events += frames
            return
    for part, frame in pieces:
        _insert(writer, part, frame, done, aside=False)


def _derived(part: Part, frame: pl.DataFrame) -> list[tuple[Table, list[pl.DataFrame]]]:
    """The pool events and pools decoded from logs, as far as there are any."""
    events = pool_events(frame) if part.type == "log" and frame.height else []
    created = [made for made in [pools(events)] if made.height]
    return [(table, frames) for table, frames in ((POOL_EVENTS, events), (POOLS, created)) if frames]


def _insert(writer: Writer, part: Part, frame: pl.DataFrame, done: Committed, *, aside: bool) -> None:
    """A part's rows and what is derived from them."""
    if not frame.height:
        return
    frame = _insert_table(writer, TABLES[TYPES[part.type]], frame, part, done, aside=aside)
    for table, frames in _derived(part, frame):
        count = (writer.insert_aside if aside else writer.insert)(table, frames)
        done.count(table, 0 if aside else count)
        if table is POOL_EVENTS and not aside:
            done.events += frames


def _insert_table(
    writer: Writer, table: Table, frame: pl.DataFrame, part: Part, done: Committed, *, aside: bool
) -> pl.DataFrame:
    """Insert; a value that the database refuses makes its message a dead letter, found by halving. What went in."""
    insert = writer.insert_aside if aside else writer.insert
    try:
        count = insert(table, [frame])
    except db.NOT_STORABLE as error:
        if frame.height == 1:
            reason = f"not storable: {str(error).splitlines()[0]}"
            done.letters.append(letter(part.source, frame[MESSAGE][0], reason))
            return frame.clear()
        half = frame.height // 2
        return pl.concat(
            _insert_table(writer, table, piece, part, done, aside=aside) for piece in (frame[:half], frame[half:])
        )
    done.count(table, 0 if aside else count)
    return frame


# ---------------------------------------------------------------------------------------------- blocks


def _write_blocks(
    writer: Writer, chain: str, parts: Sequence[Part], rules: Rules, run_id: str
) -> tuple[Committed, Times, Fresh]:
    """Blocks: choose between forks, store them on the branch they are on, move the rows of what changed sides."""
    done = Committed()
    for part in parts:
        done.letters += part.letters
    announced = pl.concat([_announced(part) for part in parts]).sort("seen_ms", "offset", maintain_order=True)
    if not announced.height:
        return done, {}, []
    conn = writer.conn
    state = db.chain_state(conn, chain)
    window = max((state.tip_number or 0) - 2 * rules.max_reorg_depth, 0)
    arrivals = [
        Block(row["block_hash"], row["block_number"], row["parent_hash"], (row["seen_ms"], row["offset"]), None)
        for row in announced.select("block_hash", "block_number", "parent_hash", "seen_ms", "offset").iter_rows(
            named=True
        )
    ]
    outcome = follow(
        db.known_blocks(conn, chain, (b.number for b in arrivals), window),
        arrivals,
        tip_number=state.tip_number,
        finalised=state.finalised,
        max_depth=rules.max_reorg_depth,
        genesis=rules.genesis,
        foreign=_foreign(announced, state, rules),
    )
    changed = db.write_tree(conn, chain, announced, outcome)
    rows_moved, restored, done.moved = _move(conn, chain, outcome, changed)
    done.letters += _refusals(parts, announced, outcome)
    _store_blocks(writer, parts, outcome, done)
    if outcome.reorg is not None:
        db.write_reorg(conn, chain, outcome, restored, rows_moved, run_id)
        done.reorgs += 1
    touched = changed | dict(announced.select("block_hash", "ts").iter_rows())
    done.see(announced["block_number"])
    return done, touched, []


def _foreign(announced: pl.DataFrame, state: db.Chain, rules: Rules) -> dict[bytes, str]:
    """Blocks too far from the stored tip to be in the middle of a fork, and at a time this chain cannot have had."""
    if state.tip_number is None or state.tip_at is None:
        return {}
    reasons = {
        block_hash: off_the_clock(number, ts, state.tip_number, state.tip_at, rules.pace_s)
        for block_hash, number, ts in announced.select("block_hash", "block_number", "ts").iter_rows()
        if abs(number - state.tip_number) > _FAR * rules.max_reorg_depth
    }
    return {block_hash: reason for block_hash, reason in reasons.items() if reason is not None}


def _announced(part: Part) -> pl.DataFrame:
    """A part's blocks with the record each came by."""
    source, at = part.source, part.frame[MESSAGE].to_numpy().astype(np.int64)
    return part.frame.with_columns(
        pl.lit(source.topic).alias("topic"),
        pl.Series("seen_ms", source.timestamps[at], pl.Int64),
        pl.Series("partition", source.partitions[at], pl.Int64),
        pl.Series("offset", source.offsets[at], pl.Int64),
    )


def _move(conn: db.Connection, chain: str, outcome: Outcome, times: Mapping[bytes, datetime]) -> tuple[int, int, Times]:
    """Rows of blocks that left or joined the canonical chain change schemas; rows moved, orphaned blocks that came
    back, and all blocks that changed sides."""
    out: dict[bytes, datetime] = {}
    back: dict[bytes, datetime] = {}
    for block_hash, (before, after) in outcome.changed.items():
        if before is None or (before in IN_TABLES) == (after in IN_TABLES):
            continue
        (back if after in IN_TABLES else out)[block_hash] = times[block_hash]
    moved = db.move_blocks(conn, chain, out, "chain", "side") + db.move_blocks(conn, chain, back, "side", "chain")
    restored = sum(outcome.changed[block_hash][0] is Status.ORPHANED for block_hash in back)
    return moved, restored, out | back


def _refusals(parts: Sequence[Part], announced: pl.DataFrame, outcome: Outcome) -> list[DeadLetter]:
    """A dead letter for each refused block that this batch brought, naming both hashes."""
    letters = []
    for part in parts:
        for row in part.frame.select(MESSAGE, "block_hash", "block_number").iter_rows(named=True):
            if row["block_hash"] in outcome.refused:
                stored, why = outcome.refused[row["block_hash"]]
                reason = (
                    f"block {row['block_number']} 0x{row['block_hash'].hex()} refused:"
                    f" {why}; stored is 0x{stored.hex() if stored else '?'}"
                )
                letters.append(letter(part.source, row[MESSAGE], reason))
    return letters


def _store_blocks(writer: Writer, parts: Sequence[Part], outcome: Outcome, done: Committed) -> None:
    """The block rows themselves, each in the schema its branch belongs to."""
    gone = [block_hash for block_hash, status in outcome.standing.items() if status not in IN_TABLES]
    aside = pl.col("block_hash").is_in(pl.Series(gone, dtype=pl.Binary).implode())
    for part in parts:
        _insert(writer, part, part.frame.filter(~aside), done, aside=False)
        _insert(writer, part, part.frame.filter(aside), done, aside=True)
