"""Batches into the real database: rows and offsets together, replays, forks, fences, and what cannot be stored.

No broker: batches are made by hand (`tests/chain.py`). `test_lane.py` has the whole loop.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import polars as pl
import psycopg
import pytest

from dash_pipeline.events.reorgs import Status
from dash_pipeline.microbatch.commit import Rules, commit, decode_batch
from dash_pipeline.microbatch.consume import Batch
from dash_pipeline.settings import Settings
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.tables import TABLES, Table
from dash_pipeline.storage.timescale import DeadLetter, Fenced
from dash_pipeline.topics import TYPES
from tests import rows
from tests.chain import MAX, ROWS, Messages, Topics, address, block, branch, hash_of, merge
from tests.run import LIMIT, Run


@pytest.fixture
def conn(migrated: Settings) -> Iterator[db.Connection]:
    with db.connect(migrated) as connection:
        yield connection


@pytest.fixture
def chain(unique: Callable[[str], str]) -> str:
    return unique("c")


@pytest.fixture
def start(migrated: Settings, chain: str) -> Iterator[Callable[..., Run]]:
    """Makes runs on the test's chain."""
    runs: list[Run] = []

    def make(name: str = "run", **rules: Any) -> Run:
        runs.append(Run(migrated, chain, name, Rules(**{"max_reorg_depth": 256, **rules})))
        return runs[-1]

    yield make
    for run in runs:
        run.conn.close()


@pytest.fixture
def run(start: Callable[..., Run]) -> Run:
    return start()


@pytest.fixture
def topics(chain: str) -> Topics:
    return Topics(chain)


def names(letter: str, first: int, last: int) -> list[str]:
    return [f"{letter}{n}" for n in range(first, last + 1)]


def whole(blocks: list[tuple[str, Messages]]) -> Messages:
    return merge(messages for _, messages in blocks)


# --- frames


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_tables_are_as_described(conn: db.Connection, table: Table) -> None:
    for schema in ("chain", "side"):
        found = conn.execute(
            "SELECT column_name, udt_name, is_nullable = 'YES' FROM information_schema.columns"
            " WHERE table_schema = %s AND table_name = %s ORDER BY ordinal_position",
            (schema, table.name),
        ).fetchall()
        assert found == [(name, column.type, column.null) for name, column in table.columns.items()]
        index = f"SELECT indexdef FROM pg_indexes WHERE schemaname = '{schema}' AND indexname = '{table.name}_key'"
        (definition,) = conn.execute(index).fetchone() or ("",)  # type: ignore[call-overload]
        assert definition.startswith("CREATE UNIQUE INDEX")
        assert sorted(definition.rpartition("(")[2].rstrip(")").split(", ")) == sorted(table.key)
    hyper = conn.execute(
        "SELECT count(*) FROM timescaledb_information.hypertables WHERE hypertable_schema = 'chain'"
        " AND hypertable_name = %s",
        (table.name,),
    ).fetchone()
    assert hyper == (int(table.hyper),)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("null", [None, True, False])
def test_every_column_of_every_table_reads_back_as_it_was_sent(
    conn: db.Connection, table: Table, null: bool | None
) -> None:
    frames = [rows.frame(random.Random(f"{table.name}{n}"), table, n, null=null) for n in (1, 2, 120)]
    for name in frames[-1].columns:  # a B-tree holds no key of 3,000 characters
        if name in table.key and table.columns[name].type == "text":
            frames = [f.with_columns(pl.col(name).str.slice(0, 100)) for f in frames]
    writer = db.Writer(conn)
    assert writer.insert(table, frames) == 123
    everything = pl.concat(frames)
    conn.execute("SET TIME ZONE 'UTC'")
    got = conn.execute(
        f"SELECT * FROM chain.{table.name} WHERE block_hash = ANY(%s)",
        (everything["block_hash"].to_list(),),
    ).fetchall()
    numerics = [i for i, column in enumerate(table.columns.values()) if column.type == "numeric"]
    jsons = [i for i, column in enumerate(table.columns.values()) if column.type == "jsonb"]

    def plain(row: tuple[Any, ...], *, sent: bool) -> tuple[Any, ...]:
        values = list(row)
        for i in numerics:
            values[i] = None if values[i] is None else int(values[i])
        for i in jsons:
            if sent and values[i] is not None:
                values[i] = json.loads(values[i])
        return tuple(values)

    at = list(table.columns).index("block_hash")
    want = {row[at]: plain(row, sent=True) for row in everything.rows()}
    assert {bytes(row[at]): plain(row, sent=False) for row in got} == want


# --- rows and offsets


def test_a_batch_fills_all_tables_and_moves_its_offsets(run: Run, topics: Topics) -> None:
    batch = topics.produce(whole(branch("A", 0, 4, "-")))
    done = run.take(batch)
    run.check(names("A", 0, 4))
    assert done.rows == {name: 5 * count for name, count in ROWS.items()}
    assert done.heights == (0, 4)
    committed = db.committed_offsets(run.conn)
    assert {p: committed[p] for p in batch.next_offsets} == batch.next_offsets
    assert run.letters() == []
    tip = run.conn.execute(
        "SELECT tip_number, tip_hash, finalised_number FROM ops.chains WHERE chain = %s", (run.chain,)
    ).fetchone()
    assert tip == (4, bytes.fromhex(hash_of("A4")[2:]), -1)


def test_amounts_are_exact(run: Run, topics: Topics) -> None:
    run.take(topics.produce(block("A0", "-")))
    for table, column in (("transactions", "value"), ("token_transfers", "value"), ("blocks", "difficulty")):
        query = f"SELECT {column} FROM chain.{table} WHERE chain = %s"
        assert int(run.one(query, run.chain)) == MAX
    query = "SELECT reserve1 FROM chain.pool_events WHERE chain = %s AND event = 'sync'"
    assert int(run.one(query, run.chain)) == 2**112 - 1


def test_a_replay_changes_nothing(start: Callable[..., Run], run: Run, topics: Topics) -> None:
    messages = whole(branch("A", 0, 4, "-"))
    run.take(topics.produce(messages))
    before = run.content()
    for again in range(3):  # the first by COPY, which meets the rows; the next through the staging tables
        done = (run if again < 2 else start("another run")).take(topics.produce(messages))
        assert sum(done.rows.values()) == 0
        assert done.reorgs == 0
        assert run.content() == before
    assert run.counts("side") == dict.fromkeys(TABLES, 0)
    assert run.letters() == []
    assert run.reorgs() == []


def test_a_batch_that_is_known_in_part(run: Run, topics: Topics) -> None:
    blocks = branch("A", 0, 9, "-")
    run.take(topics.produce(whole(blocks[:6])))
    done = run.take(topics.produce(whole(blocks[3:])))
    assert done.rows == {name: 4 * count for name, count in ROWS.items()}
    run.check(names("A", 0, 9))
    done = run.take(topics.produce(whole(blocks[8:] + branch("A", 10, 11, "A9"))))
    assert done.rows == {name: 2 * count for name, count in ROWS.items()}
    assert run.writer.replayed
    run.take(topics.produce(whole(branch("A", 12, 12, "A11"))))
    assert not run.writer.replayed, "a batch of new rows goes back to plain COPY"
    run.check(names("A", 0, 12))


def test_the_same_rows_twice_in_one_batch(run: Run, topics: Topics) -> None:
    blocks = branch("A", 0, 2, "-")
    run.take(topics.produce(whole([*blocks, *blocks])))
    run.check(names("A", 0, 2))


def test_nothing_is_written_when_publishing_fails(run: Run, topics: Topics) -> None:
    bad = topics.produce({**block("A0", "-"), "token": [b"not json"]})

    def fail(letters: list[DeadLetter]) -> None:
        raise RuntimeError("the broker is away")

    expected = db.claim(run.conn, bad.first_offsets, "run")
    with pytest.raises(RuntimeError, match="away"):
        commit(run.writer, run.chain, decode_batch(bad, run.chain, LIMIT), expected, bad, run.rules, "run", fail)
    assert {t: n for t, n in run.counts().items() if n} == {"blocks": 1}, "blocks have a transaction of their own"
    assert run.letters() == []
    committed = db.committed_offsets(run.conn)
    assert {p[0].split(".")[1]: committed[p] for p in bad.first_offsets if committed[p]} == {"blocks": 1}
    run.take(topics_from(bad, skip="blocks"))
    assert run.counts()["logs"] == ROWS["logs"]
    assert [(topic, offset) for topic, offset, _ in run.letters()] == [("tokens", 0)]


def topics_from(batch: Batch, *, skip: str) -> Batch:
    """The batch without one topic, as the next run reads it."""

    def kept(topic: str) -> bool:
        return not topic.endswith(skip)

    return Batch(
        [t for t in batch.topics if kept(t.topic)],
        {p: o for p, o in batch.next_offsets.items() if kept(p[0])},
        batch.consumed_ms,
        batch.messages,
        batch.bytes,
        {p: o for p, o in batch.first_offsets.items() if kept(p[0])},
    )


# --- two runs


def test_the_second_of_two_runs_is_fenced_and_writes_nothing(start: Callable[..., Run], topics: Topics) -> None:
    first, second = start("first"), start("second")
    for one in (first, second):
        one.expected = db.claim(one.conn, {(f"{topics.chain}.{t}", 0): 0 for t in TYPES.values()}, one.name)
    batch = topics.produce(whole(branch("A", 0, 1, "-")))
    with pytest.raises(Fenced, match=r"^handed over to run second$"):
        first.take(batch)
    assert sum(first.counts().values()) == 0
    second.take(batch)
    with pytest.raises(Fenced, match=r"^handed over to run second$"):
        first.take(batch)
    second.check(names("A", 0, 1))
    second.take(topics.produce(whole(branch("A", 2, 2, "A1"))))
    second.check(names("A", 0, 2))


def test_offsets_that_were_set_anew_fence_the_run_that_has_them(start: Callable[..., Run], topics: Topics) -> None:
    """A retry of the very run in another process, or an operator."""
    run, again = start("run"), start("run")
    batch = topics.produce(whole(branch("A", 0, 1, "-")))
    for one in (run, again):
        one.expected = db.claim(one.conn, dict.fromkeys(batch.next_offsets, 0), one.name)
    run.take(batch)
    with pytest.raises(Fenced, match=r"the committed offset is 2, this run left it at 0: it was set anew$"):
        again.take(batch)
    db.forget_offsets(run.conn, f"{topics.chain}.blocks")
    with pytest.raises(Fenced, match="the committed offset is None, this run left it at 2"):
        run.take(topics.produce(whole(branch("A", 2, 2, "A1"))))
    run.check(names("A", 0, 1))


def test_a_claim_waits_for_the_batch_in_hand_and_goes_on_behind_it(start: Callable[..., Run], topics: Topics) -> None:
    old, new = start("old"), start("new")
    batch = topics.produce({"log": [*block("A0", "-")["log"], b"not json"]})
    old.expected = db.claim(old.conn, dict.fromkeys(batch.next_offsets, 0), old.name)
    found: list[dict[Any, int]] = []
    taking = threading.Thread(target=lambda: found.append(db.claim(new.conn, old.expected or {}, new.name)))

    def meanwhile(_: object) -> None:
        taking.start()
        taking.join(0.5)
        assert taking.is_alive(), "it waits"

    parts = decode_batch(batch, old.chain, LIMIT)
    # A dead letter is published inside the transaction.
    commit(old.writer, old.chain, parts, old.expected, batch, old.rules, old.name, publish=meanwhile)
    taking.join(10)
    assert found == [batch.next_offsets]
    with pytest.raises(Fenced):
        db.claimed(old.conn, batch.next_offsets, old.name)
    assert db.claimed(new.conn, batch.next_offsets, new.name) == batch.next_offsets


def test_of_runs_that_claim_at_any_moment_exactly_one_commits_each_batch(
    start: Callable[..., Run], topics: Topics
) -> None:
    blocks = branch("A", 0, 11, "-")
    # Each in one transaction: all of a batch is committed, or nothing.
    batches = [
        topics.produce({type_: values for type_, values in messages.items() if (type_ == "block") == alone})
        for _, messages in blocks
        for alone in (True, False)
    ]
    runs = [start(f"racer {i}") for i in range(4)]
    won: dict[str, list[int]] = {one.name: [] for one in runs}
    fenced: list[str] = []
    go = threading.Barrier(len(runs))

    def race(one: Run) -> None:
        try:
            go.wait(10)
            time.sleep(random.Random(one.name).random() / 5)
            one.expected = db.claim(one.conn, {(f"{topics.chain}.{t}", 0): 0 for t in TYPES.values()}, one.name)
            for number, batch in enumerate(batches):
                if any(one.expected[p] < end for p, end in batch.next_offsets.items()):
                    one.take(batch)
                    won[one.name].append(number)
        except Fenced as error:
            fenced.append(str(error))

    threads = [threading.Thread(target=race, args=(one,)) for one in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert len(fenced) <= 3, "the newest goes on"
    assert sorted(number for numbers in won.values() for number in numbers) == list(range(len(batches)))
    runs[0].check(names("A", 0, 11))


def test_two_lanes_that_write_rows_of_the_same_blocks(start: Callable[..., Run], topics: Topics) -> None:
    """Each has half of every block's rows; blocks are registered by both at once. The blocks come last."""
    blocks = branch("A", 0, 39, "-")
    halves: list[list[Batch]] = [[], []]
    rng = random.Random(5)
    for at in range(0, 40, 4):
        for lane in (0, 1):
            part = merge(
                {type_: values[lane::2] for type_, values in messages.items() if type_ != "block"}
                for _, messages in blocks[at : at + 4]
            )
            order = list(part)
            rng.shuffle(order)
            halves[lane].append(topics.produce({type_: part[type_] for type_ in order}, partition=lane))
    errors: list[BaseException] = []
    go = threading.Barrier(2)

    def drain(one: Run, batches: list[Batch]) -> None:
        try:
            go.wait(10)
            for batch in batches:
                one.take(batch)
        except BaseException as error:
            errors.append(error)

    runs = [start(f"lane {i}") for i in range(2)]
    threads = [threading.Thread(target=drain, args=(runs[i], halves[i])) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a deadlock"
    assert errors == []
    assert set(runs[0].statuses().values()) == {"provisional"}
    runs[0].take(topics.produce(merge({"block": m["block"]} for _, m in blocks)))
    runs[0].check(names("A", 0, 39))


def test_two_connections_register_the_same_blocks(migrated: Settings, chain: str) -> None:
    """In any order: they wait for each other and do not deadlock."""
    blocks = [(bytes([i]) * 32, i, Status.PROVISIONAL, datetime(2024, 1, 1, tzinfo=UTC)) for i in range(200)]
    errors: list[BaseException] = []

    def register(seed: int) -> None:
        mixed = list(blocks)
        try:
            with db.connect(migrated) as conn:
                for round_ in range(10):
                    random.Random(seed * 100 + round_).shuffle(mixed)
                    with conn.transaction():
                        db.lock_chain(conn, f"{chain}{round_}", exclusive=False)
                        db.register_blocks(conn, f"{chain}{round_}", mixed[:150])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=register, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert errors == []


# --- forks


@pytest.mark.parametrize("seed", range(6))
def test_rows_of_a_branch_that_lost_are_aside_whatever_order_topics_come_in(
    run: Run, topics: Topics, seed: int
) -> None:
    """Each topic is read at its own pace: messages keep their order and record time within a topic, and no other."""
    rng = random.Random(seed)
    everything = [*branch("A", 0, 9, "-"), *branch("B", 7, 11, "A6"), *branch("C", 9, 9, "B8")]
    by_topic: dict[str, list[Batch]] = {type_: [] for type_ in TYPES}
    for _, messages in everything:
        for type_, values in messages.items():
            by_topic[type_].append(topics.produce({type_: values}))
    if seed < 2:  # rows before all blocks; blocks before all rows
        order = [t for t in TYPES if t != "block"]
        order = [*order, "block"] if seed == 0 else ["block", *order]
        batches = [batch for type_ in order for batch in by_topic[type_]]
    else:
        batches = []
        while any(by_topic.values()):
            batches.append(by_topic[rng.choice([t for t, left in by_topic.items() if left])].pop(0))
    for batch in batches:
        run.take(batch)
    run.check([*names("A", 0, 6), "B7", "B8", "C9"], [*names("A", 7, 9), "B9", "B10", "B11"])
    assert run.letters() == []


@pytest.mark.parametrize("depth", [1, 6, 64, 256])
def test_a_reorg_moves_all_tables_and_back(run: Run, topics: Topics, depth: int) -> None:
    tip, fork = 260, 260 - depth
    run.take(topics.produce(whole(branch("A", 0, tip, "-"))))
    other = branch("B", fork + 1, tip, f"A{fork}")
    done = run.take(topics.produce(whole(other)))
    assert done.reorgs == 1
    run.check(names("A", 0, fork) + names("B", fork + 1, tip), names("A", fork + 1, tip))
    moved = depth * sum(ROWS.values())
    hash_a, hash_b = (bytes.fromhex(hash_of(f"{letter}{tip}")[2:]) for letter in "AB")
    assert run.reorgs() == [(depth, fork, tip, hash_a, tip, hash_b, depth, 0, moved)]
    outbox = run.one(
        "SELECT blocks FROM ops.search_outbox WHERE chain = %s AND topics @> %s ORDER BY id DESC LIMIT 1",
        run.chain, [f"{run.chain}.blocks"],
    )  # fmt: skip
    assert hash_a in [bytes(h) for h in outbox], "the index learns of orphaned blocks"

    run.take(topics.produce(whole(branch("A", fork + 1, tip, f"A{fork}"))))
    run.check(names("A", 0, tip), names("B", fork + 1, tip))
    assert run.reorgs()[1:] == [(depth, fork, tip, hash_b, tip, hash_a, depth, depth, 2 * moved)]


def test_a_fork_too_deep_is_refused_and_nothing_is_merged(run: Run, topics: Topics) -> None:
    run.take(topics.produce(whole(branch("A", 0, 300, "-"))))
    before = run.content()
    done = run.take(topics.produce(whole(branch("B", 44, 46, "A43"))))
    assert run.content() == before
    assert sum(done.rows.values()) == 0
    letters = run.letters()
    assert [(topic, offset) for topic, offset, _ in letters] == [("blocks", 301), ("blocks", 302), ("blocks", 303)]
    for name, (_, _, reason) in zip(names("B", 44, 46), letters, strict=True):
        assert hash_of(name) in reason
        assert hash_of("A" + name[1:]) in reason
    assert "a fork 257 blocks deep, at most 256 are taken" in letters[0][2]
    assert [letter.reason for letter in run.published] == [reason for _, _, reason in letters]
    assert run.reorgs() == []
    assert run.counts("side") == {name: 3 * count for name, count in ROWS.items()}


def test_another_chains_blocks_are_refused_by_their_first(start: Callable[..., Run], topics: Topics) -> None:
    run = start(genesis=bytes.fromhex(hash_of("A0")[2:]))
    run.take(topics.produce(whole(branch("B", 0, 2, "-"))))
    assert run.counts()["blocks"] == 0
    run.take(topics.produce(whole(branch("A", 0, 3, "-"))))
    assert run.blocks_of("chain")["blocks"] == set(names("A", 0, 3))
    assert len(run.letters()) == 3
    assert hash_of("A0") in run.letters()[0][2]
    assert hash_of("B0") in run.letters()[0][2]


def test_a_live_chains_blocks_under_another_ones_name_are_refused(run: Run, topics: Topics) -> None:
    """Heights of another range contradict no stored block, but no chain makes thousands of blocks in no time."""
    run.take(topics.produce(whole(branch("A", 5_000, 5_003, "A4999"))))
    before = run.content()
    run.take(topics.produce(whole(branch("B", 0, 2, "-", later=12 * 5_003))))
    assert run.content() == before
    assert len(run.letters()) == 3
    for name, (_, _, reason) in zip(names("B", 0, 2), run.letters(), strict=True):
        assert hash_of(name) in reason
        assert hash_of("A5003") in reason
    assert "another chain's block: -5,003 blocks and +0 s from the tip" in run.letters()[0][2]
    assert run.counts("side") == {name: 3 * count for name, count in ROWS.items()}
    run.take(topics.produce(whole(branch("A", 0, 2, "-"))))
    assert run.blocks_of("chain")["blocks"] == set(names("A", 0, 2) + names("A", 5_000, 5_003))


def test_a_detached_branch_is_given_up_with_both_hashes(run: Run, topics: Topics) -> None:
    run.take(topics.produce(whole(branch("A", 0, 20, "-"))))
    run.take(topics.produce(whole(branch("B", 11, 12, "B10"))))
    run.check(names("A", 0, 20), ["B11", "B12"])
    for after_s, refused in ((3600, 0), (0, 2), (0, 0)):
        assert db.give_up_detached(run.conn, run.chain, after_s, "run", run.published.extend) == refused
    assert [letter.reason for letter in run.published] == [reason for *_, reason in run.letters()]
    assert [(topic, offset) for topic, offset, _ in run.letters()] == [("blocks", 21), ("blocks", 22)]
    for name, (_, _, reason) in zip(("B11", "B12"), run.letters(), strict=True):
        assert hash_of(name) in reason
        assert hash_of("A" + name[1:]) in reason
    # The operator sends the whole branch.
    run.take(topics.produce(whole(branch("B", 10, 12, "A9"))))
    run.check(names("A", 0, 9) + names("B", 10, 12), names("A", 10, 20))


def test_rows_wait_on_the_side_that_their_height_says(run: Run, topics: Topics) -> None:
    rest = {type_: values for type_, values in block("A0", "-").items() if type_ != "block"}
    run.take(topics.produce(rest))
    assert run.statuses() == {"A0": "provisional"}
    assert run.counts()["transactions"] == 2
    run.take(topics.produce({"block": block("A0", "-")["block"]}))
    run.check(["A0"])
    late = {type_: values for type_, values in block("B0", "-").items() if type_ != "block"}
    run.take(topics.produce(late))
    assert run.statuses() == {"A0": "canonical", "B0": "unseen"}
    assert run.counts("side")["transactions"] == 2
    assert run.counts()["transactions"] == 2


def test_unseen_rows_come_in_when_their_block_wins(run: Run, topics: Topics) -> None:
    run.take(topics.produce(whole(branch("A", 0, 5, "-"))))
    b5 = block("B5", "A4")
    run.take(topics.produce({t: v for t, v in b5.items() if t != "block"}))
    assert run.statuses()["B5"] == "unseen"
    run.take(topics.produce({"block": b5["block"]}))
    run.check([*names("A", 0, 4), "B5"], ["A5"])
    assert run.reorgs()[0][0] == 1


def test_a_gap_that_opens_takes_in_what_waited(run: Run, topics: Topics) -> None:
    """A reorg that was not told of: the next block names a parent nobody announced."""
    run.take(topics.produce(whole(branch("A", 0, 5, "-"))))
    b5 = block("B5", "A4")
    run.take(topics.produce({t: v for t, v in b5.items() if t != "block"}))
    run.take(topics.produce(block("B6", "B5")))
    assert run.statuses()["A5"] == "orphaned"
    assert run.statuses()["B5"] == "provisional"
    assert "B5" in run.blocks_of("chain")["logs"]
    run.take(topics.produce({"block": b5["block"]}))
    run.check([*names("A", 0, 4), "B5", "B6"], ["A5"])


# --- what cannot be stored


def without_time(messages: list[bytes]) -> list[bytes]:
    return [json.dumps({**json.loads(m), "block_timestamp": None}).encode() for m in messages]


def test_a_missing_timestamp_is_the_blocks(run: Run, topics: Topics) -> None:
    messages = block("A0", "-")
    timeless = {t: without_time(v) if t != "block" else v for t, v in messages.items()}
    run.take(topics.produce(timeless))
    run.check(["A0"])
    assert run.letters() == []
    query = "SELECT count(*) FROM chain.logs l JOIN chain.blocks b USING (chain, block_hash, ts) WHERE chain = %s"
    assert run.one(query, run.chain) == ROWS["logs"]
    run.take(topics.produce(timeless))
    run.check(["A0"])


def test_a_missing_timestamp_of_a_block_nobody_knows_is_a_dead_letter(run: Run, topics: Topics) -> None:
    run.take(topics.produce({"log": without_time(block("A0", "-")["log"]) + block("A1", "A0")["log"]}))
    assert run.blocks_of("chain")["logs"] == {"A1"}
    assert [(t, o) for t, o, _ in run.letters()] == [("logs", i) for i in range(4)]
    assert {r for *_, r in run.letters()} == {"block_timestamp is missing or null, and the block is not stored"}


def test_rows_that_tell_another_time_than_their_block_have_the_blocks(run: Run, topics: Topics) -> None:
    """Or a reorg would not find them."""
    run.take(topics.produce(whole(branch("A", 0, 1, "-"))))
    late = block("A2", "A1")
    run.take(topics.produce({"block": late["block"]}))
    shifted = [json.dumps({**json.loads(m), "block_timestamp": 1_600_000_000 + i}).encode() for i, m in
               enumerate(late["log"])]  # fmt: skip
    run.take(topics.produce({**late, "block": [], "log": shifted}))
    run.check(names("A", 0, 2))
    run.take(topics.produce(block("B2", "A1")))
    run.check(["A0", "A1", "B2"], ["A2"])


@pytest.mark.parametrize(
    ("type_", "fields", "said"),
    [
        ("trace", {"trace_id": "".join(f"{i:x}" for i in range(5000))}, "index row"),
        ("block", {"withdrawals": "@@1e200000@@"}, "numeric"),
        ("contract", {"new": "@@1e200000@@"}, "numeric"),
    ],
)
def test_what_the_database_refuses_is_a_dead_letter_and_the_rest_goes_in(
    run: Run, topics: Topics, type_: str, fields: Mapping[str, Any], said: str
) -> None:
    blocks = branch("A", 0, 6, "-")
    bad = json.dumps({**json.loads(blocks[3][1][type_][0]), **fields}).encode()
    bad = bad.replace(b'"@@', b"").replace(b'@@"', b"")
    messages = whole(blocks)
    place = messages[type_].index(blocks[3][1][type_][0])
    messages[type_][place] = bad
    done = run.take(topics.produce(messages))
    ((topic, offset, reason),) = run.letters()
    assert (topic, offset) == (TYPES[type_], place)
    assert "not storable" in reason
    assert said in reason
    assert [letter.payload for letter in done.letters] == [bad]
    table = TYPES[type_]
    assert run.counts()[table] == 7 * ROWS[table] - 1
    assert {n: c for n, c in run.counts().items() if n != table} == {n: 7 * c for n, c in ROWS.items() if n != table}


def test_a_dead_letter_holds_where_it_was_and_what_it_said(run: Run, topics: Topics) -> None:
    large = b'{"type": "log", "x": "' + b"a" * 100_000
    run.take(topics.produce({"log": [b"\xff\x00", *block("A0", "-")["log"], large]}))
    stored = run.conn.execute(
        'SELECT topic, partition, "offset", payload, payload_bytes, payload_sha256 = sha256(payload), record_ts, run_id'
        ' FROM ops.dead_letters WHERE topic LIKE %s ORDER BY "offset"',
        (f"{run.chain}.%",),
    ).fetchall()
    first, last = stored
    assert first[:6] == (f"{run.chain}.logs", 0, 0, b"\xff\x00", 2, True)
    assert first[6].timestamp() == 1_700_000_000
    assert first[7] == "run"
    assert last[2:6] == (5, large[: db.PAYLOAD_KEPT], len(large), False)
    assert [letter.payload for letter in run.published] == [b"\xff\x00", large], "whole on the topic"


def test_a_pool_found_twice_is_one(run: Run, topics: Topics) -> None:
    """The same factory log, from two producers in two partitions."""
    messages = block("A0", "-")
    run.take(topics.produce(messages))
    run.take(topics.produce({"log": messages["log"]}, partition=1))
    query = "SELECT count(*) FROM chain.pools WHERE chain = %s AND address = decode(%s, 'hex')"
    assert run.one(query, run.chain, address("poolA0")[2:]) == 1
    run.check(["A0"])


def test_a_killed_connection_loses_nothing(run: Run, topics: Topics, migrated: Settings) -> None:
    batch = topics.produce(block("A0", "-"))
    run.expected = db.claim(run.conn, batch.first_offsets, "run")
    pid = run.one("SELECT pg_backend_pid()")
    with psycopg.connect(migrated.timescale_dsn.get_secret_value()) as other:
        other.execute("SELECT pg_terminate_backend(%s)", (pid,))
    with pytest.raises(psycopg.OperationalError):
        run.take(batch)
    run.conn = db.connect(migrated)
    run.writer = db.Writer(run.conn)
    assert run.counts() == dict.fromkeys(TABLES, 0)
    run.take(batch)
    run.check(["A0"])
