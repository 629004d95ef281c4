"""The recorded market in the real database: what is read of a pool is what the recording says, bounded and quick."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from dash_pipeline.chains import load_chains
from dash_pipeline.events.abi import pools as pools_of
from dash_pipeline.market import RECORDED
from dash_pipeline.models import liquidity_outlook as outlook
from dash_pipeline.models.market_labels import Market, read_market
from dash_pipeline.models.pool_features import COLUMNS, NO_HISTORY, NO_TOKENS, PoolHistory, pool_raw, token_creators
from dash_pipeline.settings import Settings
from dash_pipeline.storage import pool_history as storage
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.migrate import upgrade
from dash_pipeline.storage.pool_history import pool_history
from dash_pipeline.storage.tables import POOL_EVENTS, POOLS, TRANSACTIONS

CHAIN = "anvil"
FAR = datetime(2030, 1, 1, tzinfo=UTC)
QUOTES = [bytes.fromhex(token.address[2:]) for token in load_chains()[CHAIN].quote_tokens]


@pytest.fixture(scope="module")
def market() -> Market:
    return read_market(RECORDED)


@pytest.fixture(scope="module")
def stored(database: Settings, market: Market) -> Iterator[db.Connection]:
    """The market's rows in the tables, and another chain's with the same addresses, which must not be seen."""
    upgrade(database)
    with db.connect(database) as conn:
        writer = db.Writer(conn)
        made = pools_of([frame for (_,), frame in market.events.group_by("event")])
        for chain in (CHAIN, "other"):
            for table, frame in ((POOL_EVENTS, market.events), (TRANSACTIONS, market.transactions), (POOLS, made)):
                rows = frame.select(*table.columns).with_columns(chain=pl.lit(chain))
                if chain == "other":
                    rows = rows.with_columns(pl.col("block_hash").bin.encode("hex").str.reverse().str.decode("hex"))
                writer.insert(table, [rows])
        conn.execute("ANALYZE chain.pool_events, chain.transactions, chain.pools")
        yield conn


def addresses(market: Market) -> list[bytes]:
    return market.history.pools["pool"].to_list()


def ordered(history: PoolHistory) -> dict[str, pl.DataFrame]:
    place = ["block_number", "log_index"]
    return {
        "pools": history.pools.sort("pool"),
        "events": history.events.sort(place),
        "transfers": history.transfers.sort(place),
        "creations": history.creations.sort("wallet", "token"),
    }


def test_it_is_what_the_recording_says(stored: db.Connection, market: Market) -> None:
    found = ordered(pool_history(stored, CHAIN, addresses(market), FAR, QUOTES))
    # Read for the creators of the pools' tokens only; WETH is another's.
    creators = token_creators(market.history).to_list()
    want = ordered(market.history)
    want["creations"] = want["creations"].filter(pl.col("wallet").is_in(creators))
    for name, frame in want.items():
        assert found[name].equals(frame, null_equal=True), name
        assert found[name].height


def test_raw_columns_are_those_of_the_recording_at_any_time(stored: db.Connection, market: Market) -> None:
    rng = random.Random(3)
    begin = market.events["ts"].min()
    assert isinstance(begin, datetime)
    for _ in range(5):
        until = begin + timedelta(seconds=rng.randrange(int((market.end - begin).total_seconds())))
        found = pool_history(stored, CHAIN, addresses(market), until, QUOTES)
        want = pool_raw(market.history, until)
        known = want.filter(pl.col("reason").is_null())
        assert pool_raw(found).filter(pl.col("reason").is_null()).equals(known)
        assert found.pools["pool"].to_list() == addresses(market)


def test_one_pool_alone_is_the_same_as_among_many(stored: db.Connection, market: Market) -> None:
    together = pool_raw(pool_history(stored, CHAIN, addresses(market), FAR, QUOTES))
    moments = pl.DataFrame({"pool": addresses(market)}).with_columns(as_of=pl.lit(market.end))
    ahead = outlook.outlook_raw(pool_history(stored, CHAIN, addresses(market), FAR, QUOTES), moments)
    for i, pool in enumerate(addresses(market)):
        alone = pool_history(stored, CHAIN, [pool], FAR, QUOTES)
        assert pool_raw(alone).equals(together[i])
        assert outlook.outlook_raw(alone, moments[i]).equals(ahead[i])


def test_without_quote_tokens_the_commoner_token_is_the_quote(stored: db.Connection, market: Market) -> None:
    found = pool_history(stored, CHAIN, addresses(market), FAR)
    assert found.pools["quote"].to_list() == market.history.pools["quote"].to_list()


def test_pools_nobody_knows_have_a_row_with_a_reason(stored: db.Connection, market: Market) -> None:
    unknown, known = b"\x07" * 20, addresses(market)[0]
    history = pool_history(stored, CHAIN, [unknown, known, unknown], FAR, QUOTES)
    assert history.pools["pool"].to_list() == [unknown, known]
    raw = pool_raw(history)
    assert raw["reason"].to_list() == [NO_HISTORY, None]
    assert all(value != value for value in raw.select(*COLUMNS).row(0))
    assert pool_raw(pool_history(stored, CHAIN, [], FAR)).height == 0


def test_a_pool_whose_creation_is_not_stored_is_scored_in_part(stored: db.Connection, market: Market) -> None:
    pool = addresses(market)[0]
    with stored.transaction(force_rollback=True):
        stored.execute("DELETE FROM chain.pools WHERE address = %s", (pool,))
        raw = pool_raw(pool_history(stored, CHAIN, [pool], FAR, QUOTES))
    assert raw["reason"].to_list() == [NO_TOKENS]
    whole = pool_raw(market.history.of([pool]))
    assert raw["mint_ratio"].to_list() == whole["mint_ratio"].to_list()
    assert raw["lp_creator_holding_ratio"].to_list() == whole["lp_creator_holding_ratio"].to_list()
    assert raw["swap_rate"].is_nan().all()
    assert raw["token_burn_ratio"].is_nan().all()


def test_a_long_history_is_cut_in_the_middle(
    stored: db.Connection, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = market.history.events.group_by("pool").len().sort("len", "pool")
    busy = counts["pool"][-1]
    rows = int(counts["len"][-1])
    for newest, oldest, cut in ((rows // 2, 5, True), (rows - 5, 5, True), (rows - 3, 5, False), (rows + 1, 1, False)):
        monkeypatch.setattr(storage, "NEWEST", newest)
        monkeypatch.setattr(storage, "OLDEST", oldest)
        found = pool_history(stored, CHAIN, [busy], FAR, QUOTES)
        every = market.history.of([busy]).events.sort("block_number", "log_index")
        want = every if not cut else pl.concat([every.head(oldest), every.tail(newest)])
        assert found.events.sort("block_number", "log_index").equals(want)
        if newest > rows // 2 and not cut:
            assert found.transfers.height == market.history.of([busy]).transfers.height
        assert bool(found.pools["cut"][0]) >= cut


def test_it_is_quick(stored: db.Connection, market: Market) -> None:
    """Generous, for a machine that others use too: the figures are the benchmark's."""
    rng = random.Random(1)
    took = []
    for pool in rng.choices(addresses(market), k=60):
        begun = time.perf_counter()
        pool_raw(pool_history(stored, CHAIN, [pool], FAR, QUOTES))
        took.append(time.perf_counter() - begun)
    print(f"p50 {statistics.median(took) * 1e3:.1f} ms, worst {max(took) * 1e3:.1f} ms")
    assert statistics.median(took) < 0.06


def test_it_reads_through_indexes(stored: db.Connection, market: Market) -> None:
    params = {
        "chain": CHAIN, "until": FAR, "pools": addresses(market)[:1], "quotes": QUOTES, "limit": 10,
        "wallets": market.history.pools["creator"][:1].to_list(), "kinds": list(storage._IN_USE),
    }  # fmt: skip
    stored.execute("SET enable_seqscan = off")
    try:
        for statement in (
            storage._POOLS,
            storage._EVENTS.format(order="DESC"),
            storage._EVENTS.format(order="ASC"),
            storage._CREATIONS,
            storage._SENT,
        ):
            plan = "\n".join(row[0] for row in stored.execute("EXPLAIN " + statement, params).fetchall())
            scans = [line for line in plan.splitlines() if "Seq Scan" in line and "tokens" not in line]
            assert not scans, plan
    finally:
        stored.execute("RESET enable_seqscan")
