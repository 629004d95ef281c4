"""Rows that are swept from the real database: those that nobody can need, and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from dash_pipeline.housekeeping.rows import drop_lost_branches, drop_old_rollups
from dash_pipeline.microbatch.commit import Rules
from dash_pipeline.settings import Settings
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.migrate import upgrade
from dash_pipeline.storage.tables import TABLES
from tests.chain import ROWS, Topics, branch, hash_of, merge
from tests.days import set_tip
from tests.run import Run

NONE = dict.fromkeys(TABLES, 0)


@pytest.fixture(scope="module")
def migrated(database: Settings) -> Settings:
    """Rows are old after nine seconds of the chain's time."""
    upgrade(database)
    return database.model_copy(update={"retention_days": 1e-4})


@pytest.fixture
def chain(unique: Callable[[str], str]) -> str:
    return unique("c")


# ---------------------------------------------------------------------------------------------- branches


@pytest.fixture
def run(migrated: Settings, chain: str) -> Iterator[Run]:
    """A chain at block 40, finalised up to 36, that has left A3 to A5 and, a moment ago, B39 and B40."""
    run = Run(migrated, chain, rules=Rules(max_reorg_depth=4))
    topics = Topics(chain)
    for blocks in (
        branch("A", 0, 5, ""),
        branch("B", 3, 40, "A2", later=1),
        branch("C", 39, 40, "B38", later=2),
    ):
        run.take(topics.produce(merge(messages for _, messages in blocks)))
    run.topics = topics  # type: ignore[attr-defined]
    assert run.one("SELECT finalised_number FROM ops.chains WHERE chain = %s", chain) == 36
    assert run.blocks_of("side")["logs"] == {"A3", "A4", "A5", "B39", "B40"}
    indexed(run)
    yield run
    run.conn.execute("TRUNCATE ops.chains, ops.block_tree, ops.search_outbox")
    run.conn.close()


def indexed(run: Run) -> None:
    """The search indexes show everything."""
    run.conn.execute("DELETE FROM ops.search_outbox WHERE chain = %s", (run.chain,))


def aside(run: Run) -> set[str]:
    """The blocks with rows in schema side; each has all of them."""
    (found,) = {frozenset(names) for names in run.blocks_of("side").values()}
    assert run.counts("side") == {name: count * len(found) for name, count in ROWS.items()}
    return set(found)


def send(run: Run, letter: str, first: int, last: int, parent: str, types: tuple[str, ...] = ()) -> None:
    """Messages again, as they were."""
    messages = merge(messages for _, messages in branch(letter, first, last, parent))
    run.take(run.topics.produce({type_: messages[type_] for type_ in types or messages}))  # type: ignore[attr-defined]


def test_rows_of_a_branch_that_has_lost_for_good_go(migrated: Settings, run: Run) -> None:
    before, statuses = run.content(), run.statuses()
    assert drop_lost_branches(migrated) == {name: 3 * count for name, count in ROWS.items()}
    assert aside(run) == {"B39", "B40"}
    assert run.content() == before
    assert run.statuses() == statuses
    assert drop_lost_branches(migrated) == NONE


def test_younger_rows_stay(migrated: Settings, run: Run) -> None:
    assert drop_lost_branches(migrated.model_copy(update={"retention_days": 7})) == NONE
    assert len(aside(run)) == 5


def test_rows_stay_that_the_indexes_have_still_to_look_at(migrated: Settings, run: Run) -> None:
    """Documents of what they name are corrected by them."""
    db.write_outbox(run.conn, run.chain, {bytes.fromhex(hash_of("A4")[2:]): datetime.now(UTC)}, {("t", 0): 1})
    drop_lost_branches(migrated)
    assert aside(run) == {"A4", "B39", "B40"}


def test_rows_stay_where_no_block_holds_the_height(migrated: Settings, run: Run) -> None:
    """The height is a gap, and the gap may still be this block's."""
    run.conn.execute("DELETE FROM ops.block_tree WHERE block_hash = %s", (bytes.fromhex(hash_of("B4")[2:]),))
    drop_lost_branches(migrated)
    assert aside(run) == {"A4", "B39", "B40"}


def test_another_chain_s_rows_stay(migrated: Settings, run: Run, unique: Callable[[str], str]) -> None:
    """Its blocks have the same hashes, and of A3 to A5 only A3 is old: it is at block 16."""
    other = Run(migrated, unique("o"), rules=Rules(max_reorg_depth=4))
    topics = Topics(other.chain)
    for blocks in (branch("A", 0, 5, ""), branch("B", 3, 16, "A2", later=1)):
        other.take(topics.produce(merge(messages for _, messages in blocks)))
    indexed(other)
    drop_lost_branches(migrated)
    assert aside(other) == {"A4", "A5"}
    assert aside(run) == {"B39", "B40"}
    other.conn.close()


@pytest.mark.parametrize("types", [(), ("block",), ("transaction", "log", "token_transfer", "trace")])
@pytest.mark.parametrize("depth", [4, 256])
def test_messages_of_a_swept_branch_change_nothing_that_is_canonical(
    migrated: Settings, run: Run, types: tuple[str, ...], depth: int
) -> None:
    """Sent again, also its blocks or its rows alone, also when deeper forks are taken by then; and with a block on top
    of it that nobody knows."""
    drop_lost_branches(migrated)
    run.rules = Rules(max_reorg_depth=depth)
    before, statuses = run.content(), run.statuses()
    send(run, "A", 3, 5, "A2", types)
    assert run.content() == before
    assert run.statuses() == statuses
    send(run, "A", 6, 7, "A5")
    assert run.content() == before
    assert run.statuses() == statuses | {"A6": "refused", "A7": "refused"}
    indexed(run)
    drop_lost_branches(migrated)
    assert run.blocks_of("side")["logs"] == {"B39", "B40"}


# ---------------------------------------------------------------------------------------------- rollups

NOON = datetime(2025, 6, 15, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def conn(migrated: Settings) -> Iterator[db.Connection]:
    with db.connect(migrated) as conn:
        conn.execute(
            "TRUNCATE ops.chains, chain.blocks, rollup.pool_candles, rollup.pool_minutes, rollup.wallet_prefixes"
        )
        yield conn


def candle(conn: db.Connection, chain: str, at: datetime) -> None:
    conn.execute(
        "INSERT INTO rollup.pool_candles (chain, pool, seconds, ts, volume0, volume1, trades, mints, burns)"
        " VALUES (%s, 'p', 60, %s, 0, 0, 1, 0, 0)",
        (chain, at),
    )


def candles(conn: db.Connection, chain: str) -> list[int]:
    """Their ages in days before NOON."""
    rows = conn.execute("SELECT ts FROM rollup.pool_candles WHERE chain = %s ORDER BY ts DESC", (chain,)).fetchall()
    return [(NOON - at).days for (at,) in rows]


def test_candles_that_no_window_reaches_go(
    conn: db.Connection, migrated: Settings, chain: str, unique: Callable[[str], str]
) -> None:
    """Seven days of a window, thirty before that, and a day; chunks without rows go as well. A chain whose time is a
    month behind keeps its own, in the same chunks."""
    behind = unique("b")
    set_tip(conn, chain, NOON + timedelta(seconds=12), blocks=13)
    set_tip(conn, behind, NOON - 30 * DAY, blocks=13)
    for age in (0, 37, 38, 39, 60, 100):
        candle(conn, chain, NOON - age * DAY)
        candle(conn, behind, NOON - age * DAY)
    assert drop_old_rollups(migrated) == {"wallet_prefixes": 0, "pool_candles": 4, "pool_minutes": 0}
    assert candles(conn, chain) == [0, 37, 38]
    assert candles(conn, behind) == [0, 37, 38, 39, 60]
    old = "SELECT count(*) FROM show_chunks('rollup.pool_candles', older_than => %s)"
    assert conn.execute(old, (NOON - 90 * DAY,)).fetchone() == (0,)
    assert drop_old_rollups(migrated) == {"wallet_prefixes": 0, "pool_candles": 0, "pool_minutes": 0}


def test_candles_that_somebody_reads_wait(conn: db.Connection, migrated: Settings, chain: str) -> None:
    set_tip(conn, chain, NOON, blocks=13)
    candle(conn, chain, NOON - 90 * DAY)
    with db.connect(migrated) as other, other.transaction():
        other.execute("SELECT * FROM rollup.pool_candles")
        assert drop_old_rollups(migrated)["pool_candles"] == 0
    assert drop_old_rollups(migrated)["pool_candles"] == 1


def test_sums_of_days_that_are_not_hot_go(conn: db.Connection, migrated: Settings, chain: str) -> None:
    set_tip(conn, chain, NOON, blocks=13)
    for age in (0, 6, 7, 8):
        conn.execute(
            "INSERT INTO rollup.wallet_prefixes VALUES (%s, %s, 'w', %s, 0, 0, 0, 0, 0, 0, 0, 0, 0, '{}', %s, %s)",
            (chain, (NOON - age * DAY).date(), *[NOON - age * DAY] * 3),
        )
        conn.execute(
            "INSERT INTO rollup.pool_minutes (chain, pool, ts, swaps, direct, burns, volume0, volume1)"
            " VALUES (%s, 'p', %s, 1, 0, 0, 0, 0)",
            (chain, NOON - age * DAY),
        )
    hot = migrated.model_copy(update={"retention_days": 7})
    assert drop_old_rollups(hot) == {"wallet_prefixes": 1, "pool_candles": 0, "pool_minutes": 1}
    left = conn.execute("SELECT min(ts) FROM rollup.pool_minutes WHERE chain = %s", (chain,)).fetchone()
    assert left == (NOON - 7 * DAY,)
    rows = conn.execute("SELECT min(day) FROM rollup.wallet_prefixes WHERE chain = %s", (chain,)).fetchone()
    assert rows == ((NOON - 7 * DAY).date(),)


def test_a_block_from_years_ahead_takes_nothing_away(conn: db.Connection, migrated: Settings, chain: str) -> None:
    set_tip(conn, chain, NOON, blocks=13)
    set_tip(conn, chain, datetime(2099, 1, 1, tzinfo=UTC), blocks=1)
    candle(conn, chain, NOON - 30 * DAY)
    assert drop_old_rollups(migrated)["pool_candles"] == 0
