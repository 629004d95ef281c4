"""Features of what is archived: the recorded market, stretched to two weeks, is the same to the last bit while all of
it is hot, when days of it are archived, when rows of these come again, and when nothing is hot any more."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from dash_pipeline.archive import manifest
from dash_pipeline.archive.retain import retain
from dash_pipeline.chains import load_chains
from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.feed.files import read_lines
from dash_pipeline.market import RECORDED
from dash_pipeline.models import lifecycle
from dash_pipeline.models.catalogue import MODELS
from dash_pipeline.models.liquidity_outlook import outlook_raw
from dash_pipeline.models.pool_features import PoolHistory, pool_raw
from dash_pipeline.models.wallet_features import WalletHistory, wallet_raw
from dash_pipeline.settings import Settings
from dash_pipeline.storage import pool_history as pools_storage
from dash_pipeline.storage import s3
from dash_pipeline.storage import wallet_history as wallets_storage
from dash_pipeline.storage.encryption import keyring
from dash_pipeline.storage.migrate import upgrade
from dash_pipeline.storage.pool_history import newest_pools, pool_history
from dash_pipeline.storage.search.rollups import Blocks, refresh_wallet_blocks
from dash_pipeline.storage.wallet_history import wallet_history
from dash_pipeline.topics import TYPES
from tests.chain import Messages, Topics
from tests.days import set_tip
from tests.faults import faulty
from tests.run import Run

CHAIN = "anvil"
FAR = datetime(2030, 1, 1, tzinfo=UTC)
QUOTES = [bytes.fromhex(token.address[2:]) for token in load_chains()[CHAIN].quote_tokens]
# Three hours become two weeks.
STRETCHED = 100
READ = ("transactions", "token_transfers", "pool_events")
AT_ONCE = 2_000
# Newest and oldest events, a creator's transactions.
LIMITS = ((5_000, 500, 10_000), (60, 9, 4))

Frames = dict[str, pl.DataFrame]


def of_pools(history: PoolHistory) -> Frames:
    place = ["pool", "block_number", "log_index"]
    return {
        "pools": history.pools.sort("pool"),
        "events": history.events.sort(place),
        "transfers": history.transfers.sort("token", *place[1:]),
        "creations": history.creations.sort("wallet", "token"),
    }


def of_wallets(history: WalletHistory) -> Frames:
    return {
        "transactions": history.transactions.sort("wallet", "block_number", "tx_index"),
        "transfers": history.transfers.sort("wallet", "block_number", "log_index"),
    }


def same(found: Frames, want: Frames) -> None:
    for name, frame in want.items():
        assert found[name].equals(frame, null_equal=True), name


@dataclass
class World:
    """The market in the tables, and what was read of it while all was hot."""

    run: Run
    settings: Settings
    recording: Messages
    pools: list[bytes]
    wallets: list[bytes]
    moments: list[datetime]
    stage: str = ""
    hot: dict[Any, Any] = field(default_factory=dict)

    def read_pools(self, until: datetime, archive: bool = True, pools: list[bytes] | None = None) -> PoolHistory:
        asked = self.pools if pools is None else pools
        return pool_history(self.run.conn, CHAIN, asked, until, QUOTES, self.settings if archive else None)

    def read_wallets(self, until: datetime, archive: bool = True, wallets: list[bytes] | None = None) -> WalletHistory:
        asked = self.wallets if wallets is None else wallets
        return wallet_history(self.run.conn, CHAIN, asked, until, self.settings if archive else None)

    def everything(self) -> dict[Any, Any]:
        found: dict[Any, Any] = {"newest": newest_pools(self.run.conn, CHAIN, 7, self.settings)}
        found["all"] = newest_pools(self.run.conn, CHAIN, 2_000, self.settings)
        with pytest.MonkeyPatch.context() as patch:
            for newest, oldest, transactions in LIMITS:
                patch.setattr(pools_storage, "CREATORS_TRANSACTIONS", transactions)
                patch.setattr(pools_storage, "NEWEST", newest)
                patch.setattr(pools_storage, "OLDEST", oldest)
                for until in self.moments:
                    found["pools", newest, until] = of_pools(self.read_pools(until))
        for until in self.moments:
            found["wallets", until] = of_wallets(self.read_wallets(until))
        found["labels"] = lifecycle.own_history(self.settings, MODELS[lifecycle.OUTLOOK])
        return found


def stretched(lines: list[bytes], begin: int) -> list[bytes]:
    """The same messages at a hundredth of the speed."""
    made = []
    for line in lines:
        message = json.loads(line)
        for name in ("timestamp", "block_timestamp"):
            if name in message:
                message[name] = begin + (int(message[name]) - begin) * STRETCHED
        made.append(json.dumps(message).encode())
    return made


def roll_up(run: Run) -> None:
    """What the indexes' follower does for wallets, without the indexes."""
    days: dict[datetime, dict[bytes, datetime]] = {}
    rows = run.conn.execute("SELECT block_hash, ts FROM chain.blocks WHERE chain = %s", (CHAIN,))
    for hash_, ts in rows:
        days.setdefault(ts.replace(hour=0, minute=0, second=0, microsecond=0), {})[hash_] = ts
    for day, blocks in days.items():
        refresh_wallet_blocks(run.conn, CHAIN, Blocks(day, list(blocks), min(blocks.values())))
    run.conn.execute("DELETE FROM ops.search_outbox")


@pytest.fixture(scope="module")
def world(database: Settings, unique: Callable[[str], str]) -> Iterator[World]:
    upgrade(database)
    settings = database.model_copy(update={"s3_bucket": unique("features-")})
    s3.bucket(settings).client.create_bucket(Bucket=settings.s3_bucket)
    files = {type_: RECORDED / f"{type_}.jsonl.zst" for type_ in TYPES}
    recording = {type_: [line for _, line in read_lines(file)] for type_, file in files.items() if file.exists()}
    begin = min(int(json.loads(line)["timestamp"]) for line in recording["block"])
    recording = {type_: stretched(lines, begin) for type_, lines in recording.items() if type_ != "trace"}
    run, topics = Run(settings, CHAIN), Topics(CHAIN)
    for start in range(0, max(map(len, recording.values())), AT_ONCE):
        run.take(topics.produce({type_: lines[start : start + AT_ONCE] for type_, lines in recording.items()}))
    assert run.letters() == []
    # Detection is another module's; what retention waits for is tested on its own.
    assert retain(settings, "run") == 0, "days that the follower has not seen stay"
    roll_up(run)
    run.conn.execute("ANALYZE")
    pools = [pool for (pool,) in run.conn.execute("SELECT address FROM chain.pools ORDER BY 1")]
    rows = run.conn.execute(
        "SELECT from_address FROM chain.transactions UNION SELECT to_address FROM chain.transactions"
        " UNION SELECT receipt_contract_address FROM chain.transactions UNION SELECT from_address FROM"
        " chain.token_transfers UNION SELECT to_address FROM chain.token_transfers"
    )
    wallets = sorted(wallet for (wallet,) in rows if wallet is not None)
    first, last = run.one("SELECT min(ts) FROM chain.blocks"), run.one("SELECT max(ts) FROM chain.blocks")
    rng = random.Random(5)
    one = World(run, settings, recording, pools, wallets, [first + (last - first) * rng.random(), FAR])
    assert (last - first).days > 12
    one.hot = one.everything()
    assert all(frame.height for frame in one.hot["pools", 5_000, FAR].values())
    assert one.hot["pools", 60, FAR]["pools"]["cut"].any()
    assert not one.hot["pools", 5_000, FAR]["pools"]["cut"].any()
    few, all_ = (one.hot["pools", newest, FAR]["creations"].height for newest in (60, 5_000))
    assert 0 < few < all_
    yield one
    run.conn.close()


def archive(world: World, days: int) -> None:
    assert retain(world.settings.model_copy(update={"retention_days": days}), "run") > 0


def again(world: World) -> None:
    """Rows of archived days arrive a second time, and are hot and archived then."""
    topics = Topics(CHAIN)
    world.run.expected = None
    world.run.conn.execute("TRUNCATE ops.stream_offsets")
    for type_ in ("transaction", "log", "token_transfer"):
        world.run.take(topics.produce({type_: world.recording[type_][:3_000]}))
    assert world.run.one("SELECT min(ts) FROM chain.pool_events") < manifest.edge(
        world.run.conn, CHAIN, ["pool_events"]
    )


def all_of_it(world: World) -> None:
    world.run.conn.execute("DELETE FROM ops.search_outbox")
    last = world.run.one("SELECT max(ts) FROM chain.blocks")
    set_tip(world.run.conn, CHAIN, manifest.midnight(last.date()) + timedelta(days=2, hours=1))
    archive(world, 1)
    for table in READ:
        assert world.run.one(f"SELECT count(*) FROM chain.{table}") == 0


STAGES: dict[str, Callable[[World], None]] = {
    "days": lambda world: archive(world, 9),
    "days again": again,
    "all": all_of_it,
}


@pytest.fixture(
    scope="module", params=["days", *(pytest.param(name, marks=pytest.mark.patient) for name in ("days again", "all"))]
)
def archived(world: World, request: pytest.FixtureRequest) -> World:
    """One after the other, in this order."""
    world.stage = request.param
    STAGES[world.stage](world)
    return world


def test_all_is_as_it_was(archived: World) -> None:
    found = archived.everything()
    assert found.keys() == archived.hot.keys()
    for key, want in archived.hot.items():
        if isinstance(want, dict):
            same(found[key], want)
        elif key == "labels":
            assert want.frame.height
            # With the tip that archives the last day, the outcome of its last hour is known.
            later = found[key].frame.join(want.frame, on="id", how="anti")
            assert later.is_empty() or archived.stage == "all"
            assert found[key].frame.join(want.frame, on="id", how="semi").equals(want.frame, null_equal=True)
        else:
            assert found[key] == want


def test_alone_is_the_same_to_the_last_bit_as_among_many(archived: World) -> None:
    for until in archived.moments:
        whole = PoolHistory(**archived.hot["pools", 5_000, until])
        moments = pl.DataFrame({"pool": whole.pools["pool"]}).with_columns(as_of=pl.lit(min(until, FAR)))
        raw, ahead = pool_raw(whole), outlook_raw(whole, moments)
        for i, pool in enumerate(whole.pools["pool"][:6]):
            alone = archived.read_pools(until, pools=[pool])
            assert pool_raw(alone).equals(raw[i])
            assert outlook_raw(alone, moments[i]).equals(ahead[i])
        every = wallet_raw(WalletHistory(**archived.hot["wallets", until]), archived.wallets)
        for i in range(0, len(archived.wallets), 17):
            alone_ = archived.read_wallets(until, wallets=[archived.wallets[i]])
            assert wallet_raw(alone_, [archived.wallets[i]]).equals(every[i])


def test_of_a_long_history_the_oldest_rows_of_a_wallet_count(archived: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dash_pipeline.models.wallet_features.OLDEST", 7)
    want = wallet_raw(WalletHistory(**archived.hot["wallets", FAR]), archived.wallets)
    monkeypatch.setattr(wallets_storage, "OLDEST", 7)
    found = archived.read_wallets(FAR)
    assert found.transactions.height < archived.hot["wallets", FAR]["transactions"].height
    assert wallet_raw(found, archived.wallets).equals(want)


def test_without_the_archive_nobody_is_known_by_half(archived: World) -> None:
    history = archived.read_pools(FAR, archive=False)
    assert history.unread
    assert history.pools.height or archived.stage == "all"
    assert not history.unread & set(history.pools["pool"])
    assert history.unread | set(history.pools["pool"]) == set(archived.pools)
    whole = PoolHistory(**archived.hot["pools", 5_000, FAR])
    young = [pool for pool in archived.pools if pool not in history.unread]
    assert pool_raw(history).sort("pool").equals(pool_raw(whole.of(young)).sort("pool"))
    found = archived.read_wallets(FAR, archive=False)
    assert found.unread
    some = [wallet for wallet in archived.wallets if wallet not in found.unread]
    want = wallet_raw(WalletHistory(**archived.hot["wallets", FAR]), some)
    assert wallet_raw(found, some).equals(want)


def test_young_ones_are_known_without_the_archive(archived: World) -> None:
    edge = manifest.edge(archived.run.conn, CHAIN, READ)
    assert edge is not None
    first = pl.concat(
        frame.select("wallet", "ts") for frame in archived.hot["wallets", FAR].values()
    ).group_by("wallet").agg(pl.col("ts").min())  # fmt: skip
    young = set(first.filter(pl.col("ts") >= edge)["wallet"])
    with faulty(archived.settings) as (through, fault):
        fault.down()
        history = wallet_history(archived.run.conn, CHAIN, sorted(young), FAR, through)
        assert not fault.requests
    assert young or archived.stage == "all"
    assert young.isdisjoint(archived.read_wallets(FAR, archive=False).unread)
    assert wallet_raw(history, sorted(young)).equals(
        wallet_raw(WalletHistory(**archived.hot["wallets", FAR]), sorted(young))
    )


def test_while_somebody_takes_rows_out_nothing_is_looked_at_without_the_archive(archived: World) -> None:
    other = Run(archived.settings, CHAIN)
    with other.conn.transaction():
        manifest.lock_seam(other.conn, "pool_events")
        assert archived.read_pools(FAR, archive=False).unread == set(archived.pools)
        assert archived.read_wallets(FAR, archive=False).unread == set(archived.wallets)
    other.conn.close()


def refused(world: World, settings: Settings) -> None:
    """Neither histories nor labels are made."""
    for read in (
        lambda: pool_history(world.run.conn, CHAIN, world.pools, FAR, QUOTES, settings),
        lambda: wallet_history(world.run.conn, CHAIN, world.wallets, FAR, settings),
        lambda: lifecycle.own_history(settings, MODELS[lifecycle.OUTLOOK]),
    ):
        with pytest.raises(Unavailable, match=r"^archive: \w+: objects cannot be read") as error:
            read()
        assert "\n" not in str(error.value)


def test_an_archive_that_cannot_be_read_is_one_line(archived: World) -> None:
    with faulty(archived.settings) as (through, fault):
        fault.down()
        refused(archived, through)
        fault.cut(f"chain={CHAIN}", 100)
        refused(archived, through)
    bucket, key = s3.bucket(archived.settings), keyring(archived.settings).current
    listed = [one for name in READ for one in manifest.entries(archived.run.conn, name, CHAIN)]
    whole = {one.object: bucket.get(one.object, key) or b"" for one in listed}
    for damaged in (lambda data: data[:4] + bytes(len(data) // 2) + data[4 + len(data) // 2 :], lambda data: b"PAR1"):
        for name, data in whole.items():
            bucket.put(name, damaged(data), seal=key)
        refused(archived, archived.settings)
    bucket.delete(list(whole))
    refused(archived, archived.settings)
    for name, data in whole.items():
        bucket.put(name, data, seal=key)
    same(of_pools(archived.read_pools(FAR)), archived.hot["pools", 5_000, FAR])


def test_objects_whose_key_is_missing_are_told(archived: World) -> None:
    archived.run.conn.execute(
        "UPDATE ops.archive_manifest SET encryption_key = '2019' WHERE table_name = 'pool_events'"
    )
    try:
        with pytest.raises(DashError, match="DASH_ENCRYPTION_KEYS: no key named 2019"):
            archived.read_pools(FAR)
    finally:
        archived.run.conn.execute("UPDATE ops.archive_manifest SET encryption_key = %s WHERE encryption_key = '2019'",
                                  (next(iter(archived.settings.encryption_keys), ""),))  # fmt: skip
