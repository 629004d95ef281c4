"""Recorded mainnet, Polygon and EVM data, where it lies beside the checkout: every message is stored or has a reason.

The data is not part of this repository: `../shared/data`, or DASH_SHARED_DATA, else these tests are skipped.
"""

from __future__ import annotations

import ast
import csv
import gzip
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dash_pipeline import topics
from dash_pipeline.events.abi import pool_events
from dash_pipeline.events.decode import decode
from dash_pipeline.feed.publish import Key
from dash_pipeline.feed.replay import replay
from dash_pipeline.feed.wait import end_offsets
from dash_pipeline.microbatch.drain import Checkpoint, Limits, drain
from dash_pipeline.microbatch.lanes import lane
from dash_pipeline.settings import Settings
from dash_pipeline.storage.migrate import upgrade
from dash_pipeline.storage.tables import TABLES
from dash_pipeline.topics import TYPES
from tests.chain import Topics
from tests.run import Run

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("DASH_SHARED_DATA") or ROOT.parent / "shared" / "data")
pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="the recorded data is not there: ../shared/data beside the checkout, or DASH_SHARED_DATA"
)

USDC_WETH = "0x88e6a0c2ddd26feeb64f039a2c41296fcb3f5640"


def lines(file: Path) -> list[bytes]:
    data = file.read_bytes()
    text = gzip.decompress(data) if file.suffix == ".gz" else data
    return [line for line in text.splitlines() if line.strip()]


def messages(folder: Path) -> dict[str, list[bytes]]:
    """What a folder holds of ethereum-etl's messages, by type: raw RPC replies have none."""
    found: dict[str, list[bytes]] = {type_: [] for type_ in TYPES}
    for file in sorted(folder.rglob("*.json*")):
        for line in lines(file) if not file.name.startswith("web3_response") else ():
            if type_ := json.loads(line).get("type"):
                found[type_].append(line)
    return found


@pytest.fixture(scope="module")
def migrated(database: Settings) -> Settings:
    upgrade(database)
    return database


@pytest.fixture
def run(migrated: Settings, unique: Callable[[str], str]) -> Iterator[Run]:
    run = Run(migrated, unique("c"))
    yield run
    run.conn.close()


# --- the market: through the broker


MARKET = {"block": 902, "transaction": 4797, "log": 21_418, "token_transfer": 8477, "trace": 36_935, "contract": 43}
SMALL = {"block": 78, "transaction": 77, "log": 301, "token_transfer": 121, "trace": 518, "contract": 7}


def snapshot(run: Run) -> dict[str, Any]:
    """A hash of every table in both schemas, the state of every block, and all dead letters."""
    hashes = {
        f"{schema}.{name}": run.conn.execute(
            f"SELECT count(*), sum(hashtextextended(x::text, 0)::numeric) FROM {schema}.{name} x WHERE chain = %s",
            (run.chain,),
        ).fetchone()
        for schema in ("chain", "side")
        for name in TABLES
    }
    statuses = run.conn.execute(
        "SELECT block_hash, status FROM ops.block_tree WHERE chain = %s ORDER BY block_hash", (run.chain,)
    ).fetchall()
    return {"tables": hashes, "statuses": statuses, "letters": run.letters()}


@pytest.mark.patient
def test_the_market_and_its_replays(run: Run, migrated: Settings) -> None:
    chain = run.chain

    def feed(key: Key) -> Checkpoint:
        report = replay(migrated, [DATA / "evm_market"], chain, key=key)
        assert report.types == {type_: MARKET[type_] + SMALL[type_] for type_ in MARKET}
        every = end_offsets(migrated, topics.chain_topics(chain))
        return drain(migrated, lane(chain, every), Limits(idle_timeout_s=2, max_run_s=200), f"run {key}")

    done = feed(Key.NONE)
    assert done.lag_after == 0
    counts = run.counts()
    assert {type_: counts[TYPES[type_]] for type_ in MARKET} == MARKET
    # Another history from the same first block, which both have: it lost at its first block, and is aside whole.
    side = run.counts("side")
    assert {type_: side[TYPES[type_]] for type_ in SMALL} == SMALL | {"block": 77}
    assert run.letters() == []
    transfers = [json.loads(line) for line in lines(DATA / "evm_market" / "token_transfer.jsonl.gz")]
    total = run.one("SELECT sum(value) FROM chain.token_transfers WHERE chain = %s", chain)
    assert int(total) == sum(t["value"] for t in transfers)
    transfer_events = run.one("SELECT count(*) FROM chain.pool_events WHERE chain = %s AND event = 'transfer'", chain)
    assert transfer_events == len(transfers)

    before = snapshot(run)
    for key in (Key.NONE, Key.TOKEN):
        again = feed(key)
        assert sum(again.rows.values()) == 0
        assert again.lag_after == 0
        assert snapshot(run) == before


# --- mainnet and Polygon


def ingest(run: Run, found: dict[str, list[bytes]], order: Sequence[str] = tuple(TYPES)) -> None:
    """Everything in batches of 5,000, a type after the other."""
    made = Topics(run.chain)
    for type_ in order:
        for at in range(0, len(found[type_]), 5000):
            run.take(made.produce({type_: found[type_][at : at + 5000]}))


def refused(run: Run) -> dict[str, Counter[str]]:
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for topic, _, reason in run.letters():
        reasons[topic][reason] += 1
    return dict(reasons)


def accounted(run: Run, found: dict[str, list[bytes]]) -> None:
    """Each distinct message is a row, in one schema or the other, or a dead letter."""
    chain, side, letters = run.counts(), run.counts("side"), refused(run)
    for type_, table in TYPES.items():
        assert chain[table] + side[table] + letters.get(table, Counter()).total() == len(set(found[type_])), type_


def test_etl_stream(run: Run) -> None:
    found = messages(DATA / "etl_stream")
    assert sum(map(len, found.values())) == 514
    ingest(run, found)
    accounted(run, found)
    # Traces and a contract of a block that is not among them carry its time; nothing is refused.
    assert refused(run) == {}
    value = run.one(
        "SELECT sum(value) FROM chain.token_transfers WHERE chain = %s AND block_number = 17173049", run.chain
    )
    want = [json.loads(m) for m in found["token_transfer"]]
    assert int(value) == sum(m["value"] for m in want if m["block_number"] == 17_173_049)


def test_etl_stream_in_another_order(run: Run) -> None:
    found = messages(DATA / "etl_stream")
    ingest(run, found, tuple(reversed(TYPES)))
    accounted(run, found)


def test_polygon(run: Run) -> None:
    found = messages(DATA / "etl_stream_polygon")
    ingest(run, found)
    accounted(run, found)
    assert refused(run) == {}
    assert run.counts()["logs"] == 19


def test_mainnet_blocks(run: Run) -> None:
    """Gaps of millions of blocks, all transaction types, no timestamps on the transactions: the blocks have them."""
    found = messages(DATA / "mainnet_blocks")
    ingest(run, found)
    accounted(run, found)
    assert refused(run) == {}
    counts = run.counts()
    assert (counts["blocks"], counts["transactions"]) == (51, 15_583)
    total = run.one("SELECT sum(value) FROM chain.transactions WHERE chain = %s", run.chain)
    assert int(total) == sum(json.loads(m)["value"] for m in found["transaction"])
    whole = run.one(
        "SELECT count(*) FROM chain.blocks b WHERE chain = %s AND transaction_count ="
        " (SELECT count(*) FROM chain.transactions t WHERE t.chain = b.chain AND t.block_hash = b.block_hash)",
        run.chain,
    )
    assert whole == 51


def test_mainnet_receipts(run: Run) -> None:
    found = messages(DATA / "mainnet_receipts")
    ingest(run, found)
    accounted(run, found)
    timeless = [
        m for type_ in ("log", "token_transfer") for m in found[type_] if not json.loads(m).get("block_timestamp")
    ]
    assert sum(sum(c.values()) for c in refused(run).values()) == len(timeless)
    assert {r for c in refused(run).values() for r in c} <= {
        "block_timestamp is missing or null, and the block is not stored"
    }


def test_mainnet_traces(run: Run) -> None:
    """These lack block, transaction and id: none can be stored, and each says so."""
    found = messages(DATA / "mainnet_traces")
    assert len(found["trace"]) == 14_173
    ingest(run, found)
    letters = refused(run)["traces"]
    assert letters.total() == 14_173
    assert all("not a valid trace" in reason for reason in letters)


# --- Uniswap V3: raw logs against minute bars made by others


def raw_logs() -> list[bytes]:
    """The day's raw logs as ethereum-etl would publish them. The file names no block hashes; any will do."""
    made = []
    with (DATA / "uniswap_v3_day" / "usdc_weth_2024-01-05.raw.csv").open() as stream:
        for row in csv.DictReader(stream):
            number = int(row["block_number"])
            at = datetime.strptime(row["block_timestamp"], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
            message = {
                "type": "log", "log_index": int(row["log_index"]), "transaction_hash": row["transaction_hash"],
                "transaction_index": int(row["transaction_index"]), "address": USDC_WETH, "data": row["data"],
                "topics": ast.literal_eval(row["topics"]), "block_number": number, "block_hash": f"0x{number:064x}",
                "block_timestamp": int(at.timestamp()),
            }  # fmt: skip
            made.append(json.dumps(message).encode())
    return made


def minutes() -> dict[str, tuple[int, int]]:
    with (DATA / "uniswap_v3_day" / "usdc_weth_2024-01-05.minute.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return {row["timestamp"]: (int(row["netAmount0"]), int(row["netAmount1"])) for row in rows}


def net(rows: Iterable[tuple[datetime, str, str]]) -> dict[str, tuple[int, int]]:
    """Per minute of the file; a minute without a swap is 0."""
    sums = {minute: [0, 0] for minute in minutes()}
    for at, amount0, amount1 in rows:
        minute = at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:00")
        sums[minute][0] += int(amount0)
        sums[minute][1] += int(amount1)
    return {minute: (a, b) for minute, (a, b) in sums.items()}


def test_v3_amounts_give_the_net_amounts_of_every_minute() -> None:
    decoded = decode(raw_logs(), "log", "ethereum", 1 << 20)
    assert decoded.rejects == []
    assert decoded.frame.height == 2934
    swaps = pl.concat(frame for frame in pool_events(decoded.frame) if frame["event"][0] == "swap")
    want = minutes()
    assert len(want) == 720
    assert net(swaps.select("ts", "amount0", "amount1").iter_rows()) == want


def test_v3_ticks_prices_and_liquidity_are_those_of_the_decoded_file() -> None:
    events = pl.concat(pool_events(decode(raw_logs(), "log", "ethereum", 1 << 20).frame), how="vertical")
    by_place = {(row["block_number"], row["log_index"]): row for row in events.iter_rows(named=True)}
    with (DATA / "uniswap_v3_day" / "usdc_weth_2024-01-05.tick.csv").open() as stream:
        ticks = [row for row in csv.DictReader(stream) if row["tx_type"] != "COLLECT"]  # fees paid out: not decoded
    assert len(ticks) > 2000
    checked: Counter[str] = Counter()
    for row in ticks:
        event = by_place[int(row["block_number"]), int(row["pool_log_index"])]
        kind = row["tx_type"].lower()
        assert event["event"] == kind
        checked[kind] += 1
        if kind == "swap":
            assert (event["amount0"], event["amount1"]) == (row["amount0"], row["amount1"])
            assert event["sqrt_price_x96"] == row["sqrtPriceX96"]
            assert event["tick"] == int(float(row["current_tick"]))
            assert event["liquidity"] == row["total_liquidity"]
        else:
            assert (event["tick_lower"], event["tick_upper"]) == (
                int(float(row["tick_lower"])),
                int(float(row["tick_upper"])),
            )
            assert abs(int(event["amount0"])) == abs(int(float(row["amount0"])))
    assert checked["swap"] > 2000
    assert checked["mint"] > 0
    assert checked["burn"] > 0


def test_v3_through_the_database(run: Run) -> None:
    ingest(run, {type_: [] for type_ in TYPES} | {"log": raw_logs()})
    assert run.letters() == []
    rows = run.conn.execute(
        "SELECT ts, amount0, amount1 FROM chain.pool_events WHERE chain = %s AND protocol = 'uniswap_v3'"
        " AND event = 'swap'",
        (run.chain,),
    )
    assert net((at, str(a), str(b)) for at, a, b in rows) == minutes()
