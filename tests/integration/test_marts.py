"""The marts on the real database: what they say of the recorded market is what its messages say, whatever came late,
was taken back, or failed on the way.

The numbers they are held against are made here with polars from the recorded messages alone. The tests of this module
are one story, in order: a part of the market, then the rest and a reorg, then everything anew.
"""

from __future__ import annotations

import csv
import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from dagster import DagsterInstance, ExecuteInProcessResult

from assets.keys import view_key
from dash_pipeline import settings as settings_module
from dash_pipeline.archive.export import Day, export
from dash_pipeline.archive.retain import retain
from dash_pipeline.chains import load_chains
from dash_pipeline.definitions import build_defs
from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.feed.files import read_lines
from dash_pipeline.market import RECORDED
from dash_pipeline.settings import Settings
from dash_pipeline.storage import changes, marts
from dash_pipeline.storage.migrate import upgrade
from dash_pipeline.storage.search import follower, indexes
from dash_pipeline.storage.search.bulk import client
from dash_pipeline.storage.tables import POOL_EVENTS
from dash_pipeline.storage.timescale import connect
from dash_pipeline.topics import TYPES
from resources import dbt
from tests.chain import Messages, Topics
from tests.days import set_tip
from tests.integration.test_real_data import DATA, raw_logs
from tests.run import Run
from tests.wait import until

WETH = "0xe7f1725e7734ce288f8367e1bb143e90bb3f0512"
ZERO = "0x" + "0" * 40
AT_ONCE = 5_000
# From this height on the market is taken back, and blocks with nothing in them are put in its place.
FORK = 850
# Part of the messages that come late.
LATE = 0.1
V3_DAY = date(2024, 1, 5)
V3_REASON = "the recorded data is not there: ../shared/data beside the checkout, or DASH_SHARED_DATA"

# A run that is killed when dbt is done with a few models, and what dbt has open in this database.
KILLED = """
import os, signal
from resources import dbt
every = {node["name"] for node in dbt.load_manifest()["nodes"].values() if "marts" in node["tags"]}
for done, _ in enumerate(dbt.DbtResource().build(every)):
    if done == 3:
        os.kill(os.getpid(), signal.SIGKILL)
"""
DBT = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'dbt'"

INCREMENTAL = {
    "pool_bars": "chain, pool, minute",
    "int_pool_hours": "chain, pool, hour",
    "int_pool_traders": "chain, pool, hour, trader",
    "int_share_flows": "chain, pool, hour, holder",
    "token_performance": "chain, token, period, period_start",
    "pool_liquidity": "chain, pool, hour",
    "wallet_activity": "chain, wallet, day, token",
    "wallet_days": "chain, wallet, day",
}


@dataclass
class Chain:
    """A chain of the test's own in the module's database, and what a lane and the thread beside it do."""

    settings: Settings
    run: Run
    topics: Topics

    def take(self, messages: Mapping[str, list[bytes]]) -> None:
        for start in range(0, max(map(len, messages.values())), AT_ONCE):
            part = {type_: lines[start : start + AT_ONCE] for type_, lines in messages.items()}
            self.run.take(self.topics.produce(part))

    def follow(self) -> None:
        quotes = load_chains(self.settings.chains_file)[self.run.chain].quote_tokens
        with follower.connect(self.settings) as conn:
            while follower.follow_once(conn, client(self.settings), self.run.chain, quotes).more:
                pass

    def changed_hours(self) -> set[datetime]:
        rows = self.run.conn.execute("SELECT hour FROM ops.changed_hours WHERE chain = %s", (self.run.chain,))
        return {hour for (hour,) in rows}

    def frame(self, mart: str, columns: str, where: str = "true") -> pl.DataFrame:
        chain = "blockchain" if mart == "dex_trades" else "chain"
        query = f"SELECT {columns} FROM analytics.{mart} WHERE {chain} = '{self.run.chain}' AND {where}"
        return pl.read_database(query, self.run.conn, infer_schema_length=None)


def new_chain(settings: Settings, name: str) -> Chain:
    indexes.ensure(settings, [name])
    return Chain(settings, Run(settings, name), Topics(name))


def build(models: set[str] | None = None) -> None:
    """A run of the marts, of all without names."""
    every = {node["name"] for node in dbt.load_manifest()["nodes"].values() if "marts" in node["tags"]}
    for result in dbt.DbtResource().build(models or every):
        assert result.passed, result


# ---------------------------------------------------------------------------------------------- the story


@pytest.fixture(scope="module")
def here(
    database: Settings, unique: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Settings, str, str]]:
    """The process's settings, with a registry of a market and of a chain for a day of Uniswap V3."""
    folder, market, v3 = tmp_path_factory.mktemp("marts"), unique("market"), unique("v3")
    registry = folder / "chains.toml"
    registry.write_text(
        f'[{market}]\ntitle = "Market"\nchain_id = 31337\nblock_time_s = 12.0\n'
        f'quote_tokens = [{{ symbol = "WETH", decimals = 18, stable = false, address = "{WETH}" }}]\n'
        f'[{v3}]\ntitle = "V3"\nchain_id = 1\nblock_time_s = 12.0\n'
    )
    upgrade(database)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("kafka_bootstrap", "opensearch_url"):
            patch.setenv(f"DASH_{name.upper()}", str(getattr(database, name)))
        for name in ("timescale_dsn", "s3_secret_key"):
            patch.setenv(f"DASH_{name.upper()}", getattr(database, name).get_secret_value())
        for name in ("s3_endpoint", "s3_access_key", "s3_bucket"):
            patch.setenv(f"DASH_{name.upper()}", getattr(database, name))
        patch.setenv("DASH_ENCRYPTION_KEYS", json.dumps(database.encryption_keys))
        patch.setenv("DASH_STACK_DIR", str(folder))
        patch.setenv("DASH_CHAINS_FILE", str(registry))
        for name in ("HOST", "PORT", "DATABASE", "USER"):  # dbt's resource sets them for the process
            patch.setenv(f"DASH_DBT_{name}", "")
        patch.setenv("DBT_ENV_SECRET_DASH_PASSWORD", "")
        caches = (settings_module.settings, dbt.load_manifest, dbt.load_lineage)
        for cache in caches:
            cache.cache_clear()
        yield database.model_copy(update={"chains_file": registry}), market, v3
    for cache in caches:
        cache.cache_clear()
    for chain in (market, v3):
        indexes.delete(client(database), chain)


@pytest.fixture(scope="module")
def recording() -> Messages:
    files = {type_: RECORDED / f"{type_}.jsonl.zst" for type_ in TYPES}
    return {type_: [line for _, line in read_lines(file)] for type_, file in files.items() if file.exists()}


@pytest.fixture(scope="module")
def split(recording: Messages) -> tuple[Messages, Messages]:
    """What comes first and what comes late, as it falls; the blocks come first."""
    rng, first, late = random.Random(7), {}, {}
    for type_, lines in recording.items():
        is_late = [type_ != "block" and rng.random() < LATE for _ in lines]
        first[type_] = [line for line, behind in zip(lines, is_late, strict=True) if not behind]
        late[type_] = [line for line, behind in zip(lines, is_late, strict=True) if behind]
    return first, late


@pytest.fixture(scope="module")
def market(here: tuple[Settings, str, str], split: tuple[Messages, Messages]) -> Iterator[Chain]:
    """The market without what comes late."""
    settings, name, _ = here
    chain = new_chain(settings, name)
    chain.take(split[0])
    chain.follow()
    yield chain
    chain.run.conn.close()


@pytest.fixture(scope="module")
def v3(here: tuple[Settings, str, str]) -> Iterator[Chain | None]:
    """A day of USDC/WETH without one swap; the chain is ten days further. None where the data is not there."""
    if not DATA.is_dir():
        yield None
        return
    settings, _, name = here
    chain = new_chain(settings, name)
    chain.take({"log": raw_logs()[:1000] + raw_logs()[1001:]})
    chain.follow()
    set_tip(chain.run.conn, name, datetime(2024, 1, 15, tzinfo=UTC))
    yield chain
    chain.run.conn.close()


@pytest.fixture(scope="module")
def first(market: Chain, v3: Chain | None) -> Iterator[tuple[ExecuteInProcessResult, DagsterInstance]]:
    """The job of all models, on what came first."""
    assert len(market.changed_hours()) == 4
    with DagsterInstance.ephemeral() as instance:
        job = build_defs("marts").resolve_job_def("build_views")
        yield job.execute_in_process(instance=instance), instance


def test_no_day_is_archived_before_the_marts_show_it(v3: Chain | None) -> None:
    if v3 is None:
        pytest.skip(V3_REASON)
    assert v3.changed_hours()
    assert retain(v3.settings, "run", ["pool_events"], v3.run.chain) == 0
    # Nor when the hours changed after the days were looked for.
    (chunk,) = v3.run.conn.execute(
        "SELECT tableoid::regclass::text FROM chain.pool_events WHERE chain = %s LIMIT 1", (v3.run.chain,)
    ).fetchone() or ("",)
    day = Day(POOL_EVENTS, v3.run.chain, V3_DAY, chunk)
    with pytest.raises(Unavailable, match="rows come and go"):
        list(export(v3.settings, v3.run.conn, [day], "run"))


def test_the_job_builds_and_tests_every_model(
    here: tuple[Settings, str, str], first: tuple[ExecuteInProcessResult, DagsterInstance]
) -> None:
    result, _ = first
    assert result.success
    models = {n["name"] for n in dbt.load_manifest()["nodes"].values() if n["resource_type"] == "model"}
    tests = {n["name"] for n in dbt.load_manifest()["nodes"].values() if n["resource_type"] == "test"}
    made = {event.asset_key.path[-1] for event in result.get_asset_materialization_events() if event.asset_key}
    assert made == models
    checked = result.get_asset_check_evaluations()
    assert {check.check_name for check in checked} == tests
    assert [check.check_name for check in checked if not check.passed] == []
    (event,) = [e for e in result.get_asset_materialization_events() if e.asset_key == view_key("token_performance")]
    lineage = event.materialization.metadata["dagster/column_lineage"].value.deps_by_column
    assert {(dep.asset_key, dep.column_name) for dep in lineage["high"]} >= {(view_key("int_token_hours"), "high")}
    with connect(here[0]) as conn:
        assert changes.waiting(conn) == 0


def test_every_column_has_the_type_that_is_said(
    first: tuple[ExecuteInProcessResult, DagsterInstance], market: Chain
) -> None:
    columns = "SELECT column_name, udt_name FROM information_schema.columns WHERE table_schema = %s AND table_name = %s"
    for node in dbt.load_manifest()["nodes"].values():
        if node["resource_type"] == "model":
            said = {name: column["data_type"] for name, column in node["columns"].items()}
            assert dict(market.run.conn.execute(columns, (node["schema"], node["name"])).fetchall()) == said
    for source in dbt.load_manifest()["sources"].values():
        said = {name: column["data_type"] for name, column in source["columns"].items()}
        assert dict(market.run.conn.execute(columns, (source["schema"], source["name"])).fetchall()) == said


@pytest.fixture(scope="module")
def second(
    first: tuple[ExecuteInProcessResult, DagsterInstance],
    market: Chain,
    v3: Chain | None,
    split: tuple[Messages, Messages],
    recording: Messages,
) -> None:
    """The rest in any order, a reorg of an hour and a half, a late swap of an archived day; a run that ends in the
    middle, and then one that does not."""
    if v3 is not None:
        assert retain(v3.settings, "run", ["pool_events", "logs"], v3.run.chain) > 0
        assert v3.run.one("SELECT count(*) FROM chain.pool_events WHERE chain = %s", v3.run.chain) == 0
        v3.take({"log": raw_logs()[1000:1001]})
        v3.follow()
        assert len(v3.changed_hours()) == 1
    late = {type_: random.Random(11).sample(lines, len(lines)) for type_, lines in split[1].items()}
    market.take(late)
    market.take({"block": other_branch(recording)})
    assert market.run.reorgs()[0][0] == len(recording["block"]) - FORK
    market.follow()
    waiting = market.changed_hours()
    assert len(waiting) == 4
    # As a run that is killed leaves things: some tables are new, and nothing was struck off.
    build({"pool_bars", "int_pool_hours", "token_performance"})
    assert market.changed_hours() == waiting
    build()
    assert market.changed_hours() == set()


def other_branch(recording: Messages) -> list[bytes]:
    """Blocks from FORK on, on top of the recorded one below, without transactions."""
    blocks = sorted((json.loads(line) for line in recording["block"]), key=lambda block: int(block["number"]))
    made, parent = [], blocks[FORK - 1]["hash"]
    for block in blocks[FORK:]:
        hash_ = f"0x{block['number']:064x}"
        made.append(json.dumps(block | {"hash": hash_, "parent_hash": parent, "transaction_count": 0}).encode())
        parent = hash_
    return made


# ---------------------------------------------------------------------------------------------- what the messages say

SWAP = "0xd78ad95fa46c994b6551d0da85fc275fe613ce37657fb8d5e3d130840159d822"
SYNC = "0x1c411e9a96e071241c2f21f7726b17ae89e3cab4c78be50e062b03a9fffbbad1"
TRANSFER = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
CREATED = "0x0d3648bd0f6ba80134a33ba9275ac585d9d315f0ad8355cddefde31afa28d0e9"
MINT = "0x4c209b5fc8ad50758f13e2e1088ba56a560dff690a1c6fef26394f4c03821c4f"
BURN = "0xdccd412f0b1252819cb1fd330b93224ca42612892bb3f4f789976e6d81936496"
EXACT = pl.Decimal(38, 0)


def words(log: Mapping[str, Any]) -> list[int]:
    data = log["data"][2:]
    return [int(data[i : i + 64], 16) for i in range(0, len(data), 64)]


def address(topic: str) -> str:
    return "0x" + topic[-40:]


def at(timestamp: int) -> datetime:
    return datetime.fromtimestamp(timestamp, UTC)


@dataclass(frozen=True)
class Said:
    """The canonical market by its messages: `events` are swaps, syncs, mints and burns of pools in order."""

    events: pl.DataFrame
    shares: pl.DataFrame
    transfers: pl.DataFrame
    transactions: pl.DataFrame


@pytest.fixture(scope="module")
def said(recording: Messages) -> Said:
    logs, transfers, transactions = (
        [m for m in map(json.loads, recording[type_]) if m["block_number"] < FORK]
        for type_ in ("log", "token_transfer", "transaction")
    )
    pools = {
        "0x" + f"{words(log)[0]:040x}": (address(log["topics"][1]), address(log["topics"][2]))
        for log in logs
        if log["topics"][0] == CREATED
    }
    assert all(WETH in tokens for tokens in pools.values())
    senders = {tx["hash"]: tx for tx in transactions}
    events, shares = [], []
    for log in sorted(logs, key=lambda log: (log["block_number"], log["log_index"])):
        kind, pool = log["topics"][0], log["address"]
        if pool not in pools:
            continue
        token0, token1 = pools[pool]
        row = {
            "pool": pool, "token": token1 if token0 == WETH else token0, "weth0": token0 == WETH,
            "ts": at(log["block_timestamp"]), "block": log["block_number"], "log_index": log["log_index"],
            "tx": log["transaction_hash"], "sender": senders[log["transaction_hash"]]["from_address"],
        }  # fmt: skip
        if kind == SWAP:
            in0, in1, out0, out1 = words(log)
            events.append(
                row | {"event": "swap", "in0": in0, "in1": in1, "out0": out0, "out1": out1,
                       "to": address(log["topics"][2])}
            )  # fmt: skip
        elif kind == SYNC:
            events.append(row | {"event": "sync", "r0": words(log)[0], "r1": words(log)[1]})
        elif kind in (MINT, BURN):
            events.append(row | {"event": "mint" if kind == MINT else "burn"})
        elif kind == TRANSFER:
            (value,) = words(log)
            for holder, change in ((address(log["topics"][1]), -value), (address(log["topics"][2]), value)):
                shares.append(row | {"holder": holder, "change": change})
    exact = dict.fromkeys(("in0", "in1", "out0", "out1", "r0", "r1"), EXACT)
    return Said(
        pl.DataFrame(events, infer_schema_length=None, schema_overrides=exact),
        pl.DataFrame(shares, infer_schema_length=None, schema_overrides={"change": EXACT}),
        pl.DataFrame(transfers, infer_schema_length=None, schema_overrides={"value": EXACT}),
        pl.DataFrame(
            [
                {
                    "from": tx["from_address"], "to": tx["to_address"], "ts": at(tx["block_timestamp"]),
                    "ok": tx["receipt_status"] == 1, "value": tx["value"], "gas": tx["receipt_gas_used"],
                    "fee": tx["receipt_gas_used"] * tx["receipt_effective_gas_price"],
                }
                for tx in transactions
            ],
            infer_schema_length=None,
            schema_overrides={"value": EXACT, "fee": EXACT},
        ),
    )  # fmt: skip


def exactly(found: pl.DataFrame, want: pl.DataFrame, key: list[str]) -> None:
    """The same rows; numbers are compared as whole numbers, to the last unit."""

    def plain(frame: pl.DataFrame) -> list[dict[str, Any]]:
        rows = frame.select(want.columns).rows(named=True)
        return sorted(
            ({k: int(v) if type(v).__name__ == "Decimal" else v for k, v in row.items()} for row in rows),
            key=lambda row: tuple(str(row[name]) for name in key),
        )

    assert plain(found) == plain(want)


def nearly(found: pl.DataFrame, want: pl.DataFrame, key: list[str]) -> None:
    """The same rows; floats to nine digits."""
    left, right = (frame.select(want.columns).sort(key).rows(named=True) for frame in (found, want))
    assert [[row[name] for name in key] for row in left] == [[row[name] for name in key] for row in right]
    for one, other in zip(left, right, strict=True):
        for name, value in other.items():
            is_near = isinstance(value, float) and one[name] == pytest.approx(value, rel=1e-9, abs=1e-12)
            assert is_near or one[name] == value, (name, one, other)


def weth(zero: str, one: str) -> pl.Expr:
    """The column of the pool's side that is WETH."""
    return pl.when("weth0").then(zero).otherwise(one)


def token(zero: str, one: str) -> pl.Expr:
    """The column of the other side."""
    return weth(one, zero)


@pytest.mark.usefixtures("second")
def test_trades(market: Chain, said: Said) -> None:
    swaps = said.events.filter(pl.col("event") == "swap")
    sold0 = pl.col("in0") != 0
    want = swaps.select(
        block_number="block",
        evt_index="log_index",
        tx_hash="tx",
        tx_from="sender",
        taker="to",
        project_contract_address="pool",
        token_sold_amount_raw=pl.when(sold0).then("in0").otherwise("in1"),
        token_bought_amount_raw=pl.when(pl.col("out0") != 0).then("out0").otherwise("out1"),
        token_sold_address=pl.when(sold0 == pl.col("weth0")).then(pl.lit(WETH)).otherwise("token"),
        token_bought_address=pl.when((pl.col("out0") != 0) == pl.col("weth0")).then(pl.lit(WETH)).otherwise("token"),
        block_time="ts",
    ).with_columns(amount_usd=pl.lit(None), block_date=pl.col("block_time").dt.date(), project=pl.lit("uniswap"))
    assert want.height > 3000
    exactly(market.frame("dex_trades", ", ".join(want.columns)), want, ["block_number", "evt_index"])


def performance(said: Said, period: str, every: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What is exact, and what is not, of the market's tokens in periods of a length."""
    events = said.events.with_columns(
        period_start=pl.col("ts").dt.truncate(every),
        price=weth("r0", "r1").cast(pl.Float64) / token("r0", "r1").cast(pl.Float64),
        moved=(token("in0", "in1") - token("out0", "out1")).abs(),
        moved_weth=(weth("in0", "in1") - weth("out0", "out1")).abs(),
        reserve=weth("r0", "r1").cast(pl.Float64) / 1e18,
        swap=pl.col("event") == "swap",
        trader=pl.when(pl.col("event") == "swap").then("sender"),
    )
    totals = {
        "trades": pl.col("swap").sum().cast(pl.Int64),
        "unique_traders": pl.col("trader").drop_nulls().n_unique().cast(pl.Int64),
    }
    tokens = events.group_by("token", "period_start").agg(
        volume_raw=pl.col("moved").sum(), in_weth=pl.col("moved_weth").sum(), **totals
    )
    quote = events.group_by("period_start").agg(volume_raw=pl.col("moved_weth").sum(), **totals)
    exact = pl.concat([tokens.drop("in_weth"), quote.with_columns(token=pl.lit(WETH))], how="diagonal")
    pools = events.group_by("token", "period_start", "pool", maintain_order=True).agg(
        open=pl.col("price").drop_nulls().first(),
        high=pl.col("price").max(),
        low=pl.col("price").min(),
        close=pl.col("price").drop_nulls().last(),
        trades=pl.col("swap").sum(),
        last=pl.col("ts").max(),
    )
    main = pools.sort(["trades", "last", "pool"], descending=[True, True, False]).unique(
        ["token", "period_start"], keep="first", maintain_order=True
    )
    rows = []
    for row in main.iter_rows(named=True):
        length = {"1h": timedelta(hours=1), "24h": timedelta(days=1), "7d": timedelta(days=7)}[period]
        until = events.filter((pl.col("token") == row["token"]) & (pl.col("ts") < row["period_start"] + length))
        before = until.filter((pl.col("pool") == row["pool"]) & (pl.col("ts") < row["period_start"]))["price"]
        reserves = until.drop_nulls("reserve").group_by("pool", maintain_order=True).agg(pl.col("reserve").last())
        (sums,) = tokens.filter(
            (pl.col("token") == row["token"]) & (pl.col("period_start") == row["period_start"])
        ).iter_rows(named=True)
        base = before.drop_nulls()
        rows.append(
            {
                "token": row["token"], "period_start": row["period_start"], "main_pool": row["pool"],
                **{name: row[name] for name in ("open", "high", "low", "close")},
                "vwap": int(sums["in_weth"]) / int(sums["volume_raw"]) if sums["volume_raw"] else None,
                "volume": int(sums["volume_raw"]) / 1e18, "volume_quote": int(sums["in_weth"]) / 1e18,
                "liquidity": 2 * reserves["reserve"].sum() if reserves.height else None,
                "change": row["close"] / (base[-1] if base.len() else row["open"]) - 1,
            }
        )  # fmt: skip
    return exact, pl.DataFrame(rows, infer_schema_length=None)


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize(("period", "every"), [("1h", "1h"), ("24h", "1d"), ("7d", "1w")])
def test_tokens(market: Chain, said: Said, period: str, every: str) -> None:
    exact, floats = performance(said, period, every)
    assert exact.height > 20
    where = f"period = '{period}'"
    found = market.frame("token_performance", ", ".join(exact.columns), where)
    exactly(found, exact, ["token", "period_start"])
    found = market.frame("token_performance", ", ".join(floats.columns), f"{where} AND token <> '{WETH}'")
    nearly(found, floats, ["token", "period_start", "main_pool"])
    quotes = market.frame("token_performance", "quote, quote_symbol, open", f"{where} AND token = '{WETH}'")
    assert set(quotes.rows()) == {(None, None, None)}


@pytest.mark.usefixtures("second")
def test_wallets(market: Chain, said: Said) -> None:
    moves = said.transfers.with_columns(
        day=pl.from_epoch("block_timestamp").dt.truncate("1d").dt.replace_time_zone("UTC")
    )
    none = pl.lit(0).cast(EXACT)
    both = pl.concat(
        [
            moves.select("day", token="token_address", wallet="from_address", other="to_address", amount_in=none,
                         amount_out="value", inward=pl.lit(False)),
            moves.select("day", token="token_address", wallet="to_address", other="from_address", amount_in="value",
                         amount_out=none, inward=pl.lit(True)),
        ]
    )  # fmt: skip
    want = both.group_by("wallet", "day", "token").agg(
        pl.col("amount_in").sum(),
        pl.col("amount_out").sum(),
        transfers_in=pl.col("inward").sum().cast(pl.Int64),
        transfers_out=(~pl.col("inward")).sum().cast(pl.Int64),
        counterparties=pl.col("other").n_unique().cast(pl.Int64),
    )
    assert want.height > 500
    exactly(market.frame("wallet_activity", ", ".join(want.columns)), want, ["wallet", "day", "token"])


@pytest.mark.usefixtures("second")
def test_wallet_days(market: Chain, said: Said) -> None:
    ok_value = pl.when("ok").then("value").otherwise(pl.lit(0).cast(EXACT))
    sent = said.transactions.group_by(wallet="from").agg(
        tx_sent=pl.len().cast(pl.Int64),
        tx_failed=(~pl.col("ok")).sum().cast(pl.Int64),
        gas_used=pl.col("gas").sum(),
        fee=pl.col("fee").sum(),
        value_out=ok_value.sum(),
    )
    got = (
        said.transactions.drop_nulls("to")
        .group_by(wallet="to")
        .agg(tx_received=pl.len().cast(pl.Int64), value_in=ok_value.sum())
    )
    moved = pl.concat([said.transfers.select(wallet=side) for side in ("from_address", "to_address")]).unique()
    swapped = said.events.filter(pl.col("event") == "swap").group_by(wallet="sender").agg(swaps=pl.len().cast(pl.Int64))
    want = pl.concat([moved, sent.select("wallet"), got.select("wallet")]).unique()
    for other in (sent, got, swapped):
        want = want.join(other, on="wallet", how="left")
    want = want.with_columns(pl.exclude("wallet").fill_null(0))
    exactly(market.frame("wallet_days", ", ".join(want.columns)), want, ["wallet"])


@pytest.mark.usefixtures("second")
def test_the_estimate_of_profits(market: Chain, said: Said) -> None:
    base = (token("out0", "out1") - token("in0", "in1")).cast(pl.Float64)
    quote = (weth("out0", "out1") - weth("in0", "in1")).cast(pl.Float64)
    swaps = said.events.filter(pl.col("event") == "swap").with_columns(base=base, quote=quote)
    buys, sells = pl.col("base") > 0, pl.col("base") < 0
    pairs = swaps.group_by("sender", "token").agg(
        bought=pl.col("base").filter(buys).sum(),
        paid=-pl.col("quote").filter(buys).sum(),
        sold=-pl.col("base").filter(sells).sum(),
        got=pl.col("quote").filter(sells).sum(),
    )
    gain = pl.min_horizontal("bought", "sold") * (pl.col("got") / pl.col("sold") - pl.col("paid") / pl.col("bought"))
    traded = (pl.col("bought") > 0) & (pl.col("sold") > 0)
    want = (
        pairs.with_columns(gain=pl.when(traded).then(gain).otherwise(0.0) / 1e18)
        .group_by(wallet="sender")
        .agg(profit_estimate=pl.col("gain").sum())
        .with_columns(profit_quote=pl.lit(WETH))
    )
    assert want.filter(pl.col("profit_estimate") != 0).height > 10
    found = market.frame("wallet_days", ", ".join(want.columns), "swaps > 0")
    nearly(found, want, ["wallet", "profit_quote"])


@pytest.mark.usefixtures("second")
def test_liquidity(market: Chain, said: Said) -> None:
    moments = pl.concat([said.events.select("pool", "ts"), said.shares.select("pool", "ts")])
    keys = moments.select("pool", hour=pl.col("ts").dt.truncate("1h")).unique()
    exact, floats = [], []
    for pool, hour in keys.iter_rows():
        until = (pl.col("pool") == pool) & (pl.col("ts") < hour + timedelta(hours=1))
        syncs = said.events.filter(until & (pl.col("event") == "sync"))
        held = said.shares.filter(until & (pl.col("holder") != ZERO)).group_by("holder").agg(pl.col("change").sum())
        amounts = sorted((int(one) for one in held["change"] if one > 0), reverse=True)
        place = {"pool": pool, "hour": hour}
        reserves = {f"reserve{i}": int(syncs[f"r{i}"][-1]) if syncs.height else None for i in (0, 1)}
        exact.append(place | reserves | {"shares": sum(amounts) or None, "holders": len(amounts)})
        if amounts:
            floats.append(
                place | {"largest_share": amounts[0] / sum(amounts), "top3_share": sum(amounts[:3]) / sum(amounts)}
            )
    whole = dict.fromkeys(("reserve0", "reserve1", "shares"), EXACT)
    want = pl.DataFrame(exact, infer_schema_length=None, schema_overrides=whole)
    exactly(market.frame("pool_liquidity", ", ".join(want.columns)), want, ["pool", "hour"])
    shares = pl.DataFrame(floats, infer_schema_length=None)
    found = market.frame("pool_liquidity", ", ".join(shares.columns), "shares IS NOT NULL")
    nearly(found, shares, ["pool", "hour"])


@pytest.mark.usefixtures("second")
def test_prices_and_quote_tokens_are_those_of_the_search_documents(market: Chain) -> None:
    names = "open, high, low, close, reserve0_f, reserve1_f, trades::int8 AS trades, mints::int8 AS mints, burns::int8"
    found = market.frame("pool_bars", f"pool, minute, {names}")
    rollup = pl.read_database(
        f"SELECT '0x' || encode(pool, 'hex') AS pool, ts AS minute,"
        f" {names.replace('reserve0_f', 'reserve0 AS reserve0_f').replace('reserve1_f,', 'reserve1 AS reserve1_f,')}"
        f" FROM rollup.pool_candles WHERE chain = '{market.run.chain}' AND seconds = 60",
        market.run.conn,
    )
    assert rollup.height > 1000
    nearly(found, rollup, ["pool", "minute"])
    windows = market.run.conn.execute(
        "SELECT '0x' || encode(pool, 'hex'), '0x' || encode(base, 'hex'), '0x' || encode(quote, 'hex')"
        " FROM rollup.pool_windows WHERE chain = %s ORDER BY 1",
        (market.run.chain,),
    ).fetchall()
    assert windows
    assert market.frame("int_pools", "pool, base, quote").sort("pool").rows() == windows


@pytest.mark.usefixtures("second")
def test_the_minutes_of_a_day_of_uniswap_v3(v3: Chain | None) -> None:
    """A day whose rows are archived, but for one that came late: all of it counts."""
    if v3 is None:
        pytest.skip(V3_REASON)
    bars = v3.run.conn.execute(
        "SELECT to_char(minute AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'), net_amount0, net_amount1, close_tick,"
        " open_tick, low_tick, high_tick, in_amount0, in_amount1, liquidity FROM analytics.pool_bars"
        " WHERE chain = %s AND trades > 0",
        (v3.run.chain,),
    ).fetchall()
    found = {minute: tuple(map(int, values)) for minute, *values in bars}
    with (DATA / "uniswap_v3_day" / "usdc_weth_2024-01-05.minute.csv").open() as stream:
        reference = list(csv.DictReader(stream))
    assert len(reference) == 720
    traded = [row for row in reference if row["timestamp"] in found]
    assert len(traded) == len(found) == 699
    names = ("netAmount0", "netAmount1", "closeTick", "openTick", "lowestTick", "highestTick", "inAmount0",
             "inAmount1", "currentLiquidity")  # fmt: skip
    for row in traded:
        assert found[row["timestamp"]] == tuple(int(row[name].removesuffix(".0")) for name in names)
    # The reference repeats the last minute where nobody traded.
    for row, before in zip(reference[1:], reference, strict=False):
        if row["timestamp"] not in found:
            assert (row["netAmount0"], row["netAmount1"], row["openTick"]) == ("0", "0", before["closeTick"])


@pytest.mark.usefixtures("second")
def test_health(market: Chain, recording: Messages) -> None:
    (row,) = market.frame(
        "chain_health", "newest_block, hot_blocks, missing_blocks, reorgs_24h, deepest_reorg_24h, dead_letters_24h"
    ).rows()
    blocks = len(recording["block"])
    assert row == (blocks - 1, blocks, 0, 1, blocks - FORK, 0)
    orphaned = market.frame("chain_health_hours", "orphaned_blocks, missing_blocks")
    assert orphaned.sum().row(0) == (blocks - FORK, 0)


def test_sources_are_fresh_while_offsets_are_written(
    market: Chain, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBT_USE_COLORS", "false")
    fresh, stale = "PASS freshness of ops.stream_offsets", "WARN freshness of ops.stream_offsets"
    assert dbt.command(["source", "freshness"]) == 0
    assert fresh in capfd.readouterr().out
    market.run.conn.execute("UPDATE ops.stream_offsets SET updated_at = updated_at - interval '2 hours'")
    assert dbt.command(["source", "freshness"]) == 0
    assert stale in capfd.readouterr().out


def test_two_runs_do_not_meet(here: tuple[Settings, str, str]) -> None:
    with marts.alone(here[0]), pytest.raises(DashError, match="another run is building them"):
        build()


@pytest.mark.usefixtures("second")
def test_what_came_piece_by_piece_is_what_comes_at_once(market: Chain) -> None:
    """All rows again, into tables that are not there, by a run after one that was killed between two models."""
    # The day of V3 is archived but for a row; what is built anew reads what is hot, and the days that this is of.
    stored = {name: market.frame(name, "*") for name in INCREMENTAL}
    market.run.conn.execute(f"DROP TABLE {', '.join(f'analytics.{name}' for name in INCREMENTAL)} CASCADE")
    killed = subprocess.run([sys.executable, "-c", KILLED], check=False)
    assert killed.returncode == -signal.SIGKILL
    until(lambda: market.run.conn.execute(DBT).fetchone() == (0,), "the end of what it began")
    assert len(market.changed_hours()) == 3, "what happened in the fourth was taken back"
    build()
    assert not market.changed_hours()
    for name, key in INCREMENTAL.items():
        assert stored[name].height > 0
        nearly(market.frame(name, "*"), stored[name], key.split(", "))
