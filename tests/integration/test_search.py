"""Search on a real TimescaleDB and a real OpenSearch: what is in an index is what the committed rows say."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from opensearchpy import OpenSearch
from psycopg import sql

from dash_pipeline.chains import load_chains
from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.settings import Settings
from dash_pipeline.stack import Stack
from dash_pipeline.storage import search, timescale
from dash_pipeline.storage.migrate import upgrade
from dash_pipeline.storage.search import bulk, follower, indexes, rebuilding, rollups
from tests.wait import until

Document = dict[str, Any]

NOON = datetime.fromisoformat("2024-03-09T12:00:00+00:00")
TRANSFER = bytes.fromhex("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef")


def address(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:20]


def digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def text(value: bytes) -> str:
    return "0x" + value.hex()


ALICE, BOB, POOL, TOKEN, USD = (address(name) for name in ("alice", "bob", "pool", "token", "usd"))


@dataclass
class Chain:
    """A chain whose rows are written by hand, and its indexes."""

    name: str
    settings: Settings
    conn: timescale.Connection
    opensearch: OpenSearch
    offset: int = 0
    times: dict[bytes, datetime] = field(default_factory=dict)

    def insert(self, table: str, **row: Any) -> None:
        self.conn.execute(
            sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
                sql.Identifier(*table.split(".")),
                sql.SQL(", ").join(map(sql.Identifier, row)),
                sql.SQL(", ").join(sql.Placeholder() * len(row)),
            ),
            list(row.values()),
        )

    def block(self, number: int, ts: datetime, branch: str = "", *, known: bool = True) -> bytes:
        """A canonical block that is the tip; `known=False`: only rows of it have arrived."""
        block = digest(f"{self.name} block {number}{branch}")
        at: dict[str, Any] = {"chain": self.name, "ts": ts, "block_number": number, "block_hash": block}
        self.times[block] = ts
        if known:
            self.insert("chain.blocks", **at, parent_hash=bytes(32))
            self.conn.execute(
                "INSERT INTO ops.chains (chain, tip_number, tip_hash, tip_ts) VALUES (%(chain)s, %(block_number)s,"
                " %(block_hash)s, %(ts)s) ON CONFLICT (chain) DO UPDATE SET tip_number = excluded.tip_number,"
                " tip_hash = excluded.tip_hash, tip_ts = excluded.tip_ts",
                at,
            )
        self.insert("ops.block_tree", **at, status="canonical" if known else "provisional")
        return block

    def at(self, block: bytes, tx: str) -> dict[str, Any]:
        """The columns that rows of a transaction share."""
        (number,) = self.conn.execute(
            "SELECT block_number FROM ops.block_tree WHERE chain = %s AND block_hash = %s", (self.name, block)
        ).fetchone() or (0,)
        return {"chain": self.name, "ts": self.times[block], "block_number": number, "block_hash": block,
                "tx_hash": digest(tx)}  # fmt: skip

    def transaction(self, block: bytes, tx: str, sender: bytes = ALICE, to: bytes | None = BOB, **more: Any) -> None:
        value = more.pop("value", 0)
        row = {"tx_index": 0, "value": value, "value_f": float(value), "receipt_status": 1, "gas_price": 7,
               "receipt_gas_used": 21_000, "receipt_effective_gas_price": 5}  # fmt: skip
        self.insert("chain.transactions", **self.at(block, tx), from_address=sender, to_address=to, **(row | more))

    def transfer(self, block: bytes, tx: str, index: int, sender: bytes, to: bytes, value: int = 1) -> None:
        self.insert("chain.token_transfers", **self.at(block, tx), log_index=index, token_address=TOKEN,
                    from_address=sender, to_address=to, value=value, value_f=float(value))  # fmt: skip

    def pool(self, block: bytes, tx: str = "creation", token0: bytes = TOKEN, token1: bytes = USD) -> None:
        self.insert("chain.pools", **self.at(block, tx), address=POOL, protocol="uniswap_v2",
                    factory=address("factory"), token0=token0, token1=token1)  # fmt: skip

    def event(
        self, block: bytes, tx: str, index: int, event: str, protocol: str = "uniswap_v2", **columns: Any
    ) -> None:
        floats = {f"{name}_f": float(columns[name]) for name in ("amount0", "amount1", "reserve0", "reserve1")
                  if name in columns}  # fmt: skip
        self.insert("chain.pool_events", **self.at(block, tx), log_index=index, protocol=protocol, event=event,
                    pool=POOL, **columns, **floats)  # fmt: skip

    def trade(self, block: bytes, tx: str, index: int, reserves: tuple[int, int], amounts: tuple[int, int]) -> None:
        self.event(block, tx, index, "sync", reserve0=reserves[0], reserve1=reserves[1])
        self.event(block, tx, index + 1, "swap", amount0=amounts[0], amount1=amounts[1])

    def touch(self, *blocks: bytes) -> None:
        """What a micro-batch leaves in the outbox."""
        self.offset += 1
        timescale.write_outbox(
            self.conn, self.name, {b: self.times[b] for b in blocks}, {(f"{self.name}.logs", 0): self.offset}
        )

    def move(self, source: str, target: str, *blocks: bytes) -> None:
        """What a reorg does to these blocks' rows."""
        timescale.move_blocks(self.conn, self.name, {b: self.times[b] for b in blocks}, source, target)
        self.conn.execute(
            "UPDATE ops.block_tree SET status = %s WHERE chain = %s AND block_hash = ANY(%s)",
            ("canonical" if target == "chain" else "orphaned", self.name, list(blocks)),
        )
        self.touch(*blocks)

    def follow(self) -> search.Progress:
        """One cycle and whatever windows are due; every document must fit its mapping."""
        quotes = load_chains(self.settings.chains_file)[self.name].quote_tokens
        progress = search.follow_once(self.conn, self.opensearch, self.name, quotes)
        assert sum(written.rejected for written in progress.written.values()) == 0
        while progress.more:
            progress.more = search.follow_once(self.conn, self.opensearch, self.name, quotes).more
        return progress

    def all(self, index: str) -> dict[str, Document]:
        """Every document of an index by id."""
        name = indexes.alias(index, self.name)
        self.opensearch.indices.refresh(index=name)
        hits = self.opensearch.search(index=name, body={"size": 1000})["hits"]["hits"]
        return {hit["_id"]: hit["_source"] for hit in hits}

    def everything(self) -> dict[str, dict[str, Document]]:
        return {index: self.all(index) for index in search.INDEXES}

    def token(self, token: bytes = TOKEN) -> Document | None:
        return search.token(self.opensearch, self.name, text(token))

    def wallet(self, wallet: bytes) -> list[Document]:
        self.all(search.WALLETS_INDEX)
        return search.wallet_days(self.opensearch, self.name, text(wallet))

    def waiting(self) -> int:
        return search.outbox(self.conn, self.name).rows


@pytest.fixture(scope="module")
def schema(database: Settings) -> Settings:
    upgrade(database)
    return database


@pytest.fixture
def chain(schema: Settings, unique: Callable[[str], str], tmp_path: Path) -> Iterator[Chain]:
    """A registered chain nobody else has, with empty indexes."""
    name = unique("c")
    registry = tmp_path / "chains.toml"
    registry.write_text(
        f'[{name}]\ntitle = "Test"\nchain_id = 1\nblock_time_s = 1.0\n'
        f'quote_tokens = [{{ symbol = "USD", decimals = 6, stable = true, address = "{text(USD)}" }}]\n'
    )
    settings = schema.model_copy(update={"chains_file": registry})
    with search.connect(settings) as conn:
        assert search.ensure(settings, [name]) == [f"{index}-{name}" for index in search.INDEXES]
        yield Chain(name, settings, conn, search.client(settings))
        search.delete(search.client(settings), name)


def market(chain: Chain) -> tuple[bytes, bytes]:
    """Two blocks: a pool with a trade, and a plain transfer an hour later."""
    first = chain.block(1, NOON)
    chain.pool(first)
    chain.transaction(first, "t1", to=POOL)
    chain.transfer(first, "t1", 0, ALICE, POOL, 10)
    chain.trade(first, "t1", 1, (1000 * 10**18, 2000 * 10**6), (10**18, -2 * 10**6))
    second = chain.block(2, NOON + timedelta(hours=1))
    chain.transaction(second, "t2", value=5 * 10**18)
    chain.touch(first, second)
    return first, second


# ---------------------------------------------------------------------------------------------- documents


def test_a_transaction_is_there_whole(chain: Chain) -> None:
    block = chain.block(7, NOON)
    at = chain.at(block, "tx")
    big = 2**256 - 1
    chain.transaction(block, "tx", value=big, nonce=3, gas=90_000, max_fee_per_gas=9, transaction_type=2,
                      input=bytes.fromhex("a9059cbb0102"), receipt_extra='{"l1_fee": 12}', tx_index=4)  # fmt: skip
    topics = {f"topic{i}": digest(f"topic {i}") for i in (1, 2, 3)}
    chain.insert("chain.logs", **at, tx_index=4, log_index=10, address=TOKEN, topic0=TRANSFER, **topics, data=b"\xab")
    chain.insert("chain.logs", **at, tx_index=4, log_index=9, address=POOL, data=b"")
    chain.transfer(block, "tx", 10, ALICE, address("carol"), big)
    chain.event(block, "tx", 9, "swap", amount0=1, amount1=-(2**200), sender=ALICE, recipient=BOB)
    chain.touch(block)
    chain.follow()
    found = chain.opensearch.get(
        index=f"transactions-{chain.name}", id=f"{chain.name}:{text(digest('tx'))}", params={"routing": text(ALICE)}
    )
    assert found["_source"] == {
        "chain": chain.name,
        "ts": "2024-03-09T12:00:00+00:00",
        "block_number": 7,
        "block_hash": text(block),
        "tx_hash": text(digest("tx")),
        "tx_index": 4,
        "nonce": 3,
        "from_address": text(ALICE),
        "to_address": text(BOB),
        "value": str(big),
        "value_f": float(big),
        "gas": 90_000,
        "gas_price": 7,
        "max_fee_per_gas": 9,
        "transaction_type": 2,
        "input": "0xa9059cbb0102",
        "receipt_status": 1,
        "receipt_gas_used": 21_000,
        "receipt_effective_gas_price": 5,
        "receipt_extra": {"l1_fee": 12},
        "method": "0xa9059cbb",
        "wallets": sorted(map(text, (ALICE, BOB, address("carol")))),
        "logs": [
            {"log_index": 9, "address": text(POOL), "data": "0x", "topics": []},
            {
                "log_index": 10,
                "address": text(TOKEN),
                "data": "0xab",
                "topics": [text(TRANSFER), *(text(topic) for topic in topics.values())],
            },
        ],
        "token_transfers": [
            {
                "log_index": 10,
                "token_address": text(TOKEN),
                "from_address": text(ALICE),
                "to_address": text(address("carol")),
                "value": str(big),
                "value_f": float(big),
            }
        ],
        "pool_events": [
            {
                "log_index": 9,
                "protocol": "uniswap_v2",
                "event": "swap",
                "pool": text(POOL),
                "sender": text(ALICE),
                "recipient": text(BOB),
                "amount0": "1",
                "amount1": str(-(2**200)),
                "amount0_f": 1,
                "amount1_f": float(-(2**200)),
            }
        ],
    }
    chain.all(search.TRANSACTIONS_INDEX)
    for wallet in (ALICE, BOB, address("carol")):
        hits = search.wallet_transactions(chain.opensearch, chain.name, text(wallet).upper().replace("X", "x"))
        assert [hit["tx_hash"] for hit in hits] == [text(digest("tx"))]
    assert search.wallet_transactions(chain.opensearch, chain.name, text(POOL)) == []


def test_a_log_waits_for_its_transaction(chain: Chain) -> None:
    block = chain.block(1, NOON, known=False)
    chain.insert("chain.logs", **chain.at(block, "tx"), log_index=0, address=TOKEN, data=b"")
    chain.touch(block)
    chain.follow()
    assert chain.all(search.TRANSACTIONS_INDEX) == {}
    chain.transaction(block, "tx")
    chain.touch(block)
    chain.follow()
    (document,) = chain.all(search.TRANSACTIONS_INDEX).values()
    assert [log["address"] for log in document["logs"]] == [text(TOKEN)]


def test_a_wallets_day(chain: Chain) -> None:
    market(chain)
    late = chain.block(3, NOON + timedelta(hours=12, seconds=-1))
    chain.transaction(late, "failed", value=3, receipt_status=0)
    tomorrow = chain.block(4, NOON + timedelta(hours=12))
    chain.transaction(tomorrow, "t4", sender=BOB, to=None)
    chain.touch(late, tomorrow)
    chain.follow()
    assert chain.wallet(ALICE) == [
        {
            "chain": chain.name,
            "wallet": text(ALICE),
            "day": "2024-03-09",
            "tx_sent": 3,
            "tx_received": 0,
            "tx_failed": 1,
            "value_out": str(5 * 10**18),
            "value_out_f": 5e18,
            "value_in": "0",
            "value_in_f": 0,
            "transfers_out": 1,
            "transfers_in": 0,
            "swaps": 1,
            "fee": str(3 * 21_000 * 5),
            "fee_f": 3 * 21_000 * 5,
            "tokens": 1,
            "first_seen": "2024-03-09T12:00:00+00:00",
            "last_seen": "2024-03-09T23:59:59+00:00",
        }
    ]
    bob = [(day["day"], day["tx_sent"], day["tx_received"], day["value_in"]) for day in chain.wallet(BOB)]
    assert bob == [("2024-03-10", 1, 0, "0"), ("2024-03-09", 0, 2, str(5 * 10**18))]


# ---------------------------------------------------------------------------------------------- tokens


def test_windows_are_counted_from_the_chains_newest_block(chain: Chain) -> None:
    start = chain.block(1, NOON)
    chain.pool(start)
    chain.insert("chain.tokens", chain=chain.name, ts=NOON, block_number=1, block_hash=start, address=TOKEN,
                 symbol="TKN", name="Token", decimals=8)  # fmt: skip
    # 1000 TKN against 2000 USD: 2 USD each, then 3 USD after half of the liquidity left.
    chain.transaction(start, "t1")
    chain.trade(start, "t1", 1, (1000 * 10**8, 2000 * 10**6), (10**8, -2 * 10**6))
    later = chain.block(2, NOON + timedelta(minutes=30))
    chain.transaction(later, "t2")
    chain.trade(later, "t2", 1, (500 * 10**8, 1500 * 10**6), (-4 * 10**8, 12 * 10**6))
    chain.touch(start, later)
    chain.follow()
    token = chain.token()
    assert token is not None
    assert token == {
        "chain": chain.name,
        "address": text(TOKEN),
        "symbol": "TKN",
        "name": "Token",
        "decimals": 8,
        "as_of": "2024-03-09T12:30:00+00:00",
        "price": pytest.approx(3.0),
        "quote": text(USD),
        "quote_symbol": "USD",
        "liquidity": pytest.approx(3000.0),
        "main_pool": text(POOL),
        "protocol": "uniswap_v2",
        "pools": 1,
        "last_trade": "2024-03-09T12:30:00+00:00",
        **{
            f"{name}_{window}": pytest.approx(value)
            for window in ("1h", "24h", "7d")
            for name, value in {
                "change": 0.5, "volume": 5.0, "volume_quote": 14.0, "liquidity_change": -0.25, "trades": 2,
            }.items()
        },
    }  # fmt: skip
    quote = chain.token(USD)
    assert quote is not None
    assert (quote["trades_1h"], quote["volume_1h"], quote.get("price")) == (2, pytest.approx(14.0), None)

    def windows(minutes: float) -> tuple[Any, ...]:
        chain.touch(chain.block(100 + int(minutes), NOON + timedelta(minutes=minutes)))
        chain.follow()
        token = chain.token()
        assert token is not None
        return tuple((token[f"trades_{w}"], round(token[f"change_{w}"], 6)) for w in ("1h", "24h", "7d"))

    # Empty blocks move the chain's time; the first trade's minute leaves the hour, then the second's, then the day's.
    assert windows(60.9) == ((2, 0.5), (2, 0.5), (2, 0.5))
    assert windows(61) == ((1, 0.5), (2, 0.5), (2, 0.5))
    assert windows(91) == ((0, 0.0), (2, 0.5), (2, 0.5))
    assert windows(24 * 60 + 31) == ((0, 0.0), (0, 0.0), (2, 0.5))
    assert windows(7 * 24 * 60 + 1) == ((0, 0.0), (0, 0.0), (1, 0.5))


def test_hours_and_minutes_make_the_same_window(chain: Chain) -> None:
    """A window that begins inside an hour: some trades are read as minutes, some as hours, none twice."""
    blocks = []
    for i in range(0, 200, 7):
        block = chain.block(i, NOON + timedelta(minutes=i))
        chain.transaction(block, f"t{i}")
        chain.trade(block, f"t{i}", 1, (10**18, 10**18), (1, -1))
        blocks.append(block)
    chain.pool(blocks[0])
    chain.touch(*blocks)
    chain.follow()
    token = chain.token()
    assert token is not None
    last = 196
    assert token["trades_1h"] == sum(i >= last - 60 for i in range(0, 200, 7))
    assert token["trades_24h"] == token["trades_7d"] == len(blocks)


def test_v3_price_and_depth(chain: Chain) -> None:
    """USDC/WETH as on mainnet: token0 has 6 decimals and is the quote."""
    block = chain.block(1, NOON)
    chain.pool(block, token0=USD, token1=TOKEN)
    chain.transaction(block, "t")
    sqrt_price = int((1e18 / 2500e6) ** 0.5 * 2**96)
    chain.event(block, "t", 0, "initialize", "uniswap_v3", sqrt_price_x96=sqrt_price // 2, tick=0)
    chain.event(block, "t", 1, "swap", "uniswap_v3", amount0=2500 * 10**6, amount1=-(10**18),
                sqrt_price_x96=sqrt_price, liquidity=10**15, tick=1)  # fmt: skip
    chain.touch(block)
    chain.follow()
    token = chain.token()
    assert token is not None
    assert token["price"] == pytest.approx(2500.0)
    assert token["change_1h"] == pytest.approx(2500 / 10_000 - 1)
    assert token["liquidity"] == pytest.approx(2 * 10**15 / (sqrt_price / 2**96) / 1e6)


def test_without_a_registered_quote_the_commoner_token_is_it(chain: Chain) -> None:
    block = chain.block(1, NOON)
    common = address("common")
    chain.pool(block, token0=common, token1=TOKEN)
    chain.insert("chain.pools", **chain.at(block, "x"), address=address("other pool"), protocol="uniswap_v2",
                 factory=bytes(20), token0=address("other"), token1=common)  # fmt: skip
    chain.trade(block, "t", 1, (4 * 10**18, 10**18), (1, -1))
    chain.touch(block)
    chain.follow()
    token = chain.token()
    assert token is not None
    assert (token["quote"], token["price"]) == (text(common), pytest.approx(4.0))


def test_an_lp_transfer_is_no_trade_and_absurd_numbers_are_no_error(chain: Chain) -> None:
    block = chain.block(1, NOON)
    chain.pool(block)
    chain.insert("chain.tokens", chain=chain.name, ts=NOON, block_number=1, block_hash=block, address=TOKEN,
                 symbol="\u202e" * 1000, decimals=10**9)  # fmt: skip
    chain.event(block, "t", 0, "transfer", "erc20", amount0=2**255)
    chain.event(block, "t", 1, "sync", reserve0=0, reserve1=2**112)
    chain.event(block, "t", 2, "swap", amount0=2**112 - 1, amount1=-1)
    chain.event(block, "t", 3, "swap", "uniswap_v3", amount0=1, amount1=1, sqrt_price_x96=1, liquidity=2**128 - 1)
    chain.touch(block)
    chain.follow()
    token = chain.token()
    assert token is not None
    assert (token["trades_1h"], token["symbol"], token["decimals"]) == (2, "\u202e" * 1000, 10**9)


def test_top_tokens(chain: Chain) -> None:
    market(chain)
    chain.follow()
    chain.all(search.TOKENS_INDEX)
    (top,) = search.top_tokens(chain.opensearch, chain.name, "7d", "change")
    assert top["address"] == text(TOKEN)
    assert search.top_tokens(chain.opensearch, chain.name, "7d", "change", min_liquidity=1e9) == []
    assert search.top_tokens(chain.opensearch, "nochain") == []
    assert search.token(chain.opensearch, "nochain", text(TOKEN)) is None


# ---------------------------------------------------------------------------------------------- replays, reorgs


def test_a_replay_changes_nothing(chain: Chain) -> None:
    blocks = market(chain)
    chain.follow()
    before = chain.everything()
    assert [len(documents) for documents in before.values()] == [2, 2, 3]
    for _ in range(2):
        chain.touch(*blocks)
        chain.follow()
    assert chain.everything() == before


def test_an_orphaned_block_leaves_and_comes_back(chain: Chain) -> None:
    first, _ = market(chain)
    chain.follow()
    before = chain.everything()
    chain.move("chain", "side", first)
    chain.follow()
    assert [doc["tx_hash"] for doc in chain.all(search.TRANSACTIONS_INDEX).values()] == [text(digest("t2"))]
    assert chain.token() is None
    assert chain.wallet(POOL) == []
    assert [(day["tx_sent"], day["swaps"], day["tokens"]) for day in chain.wallet(ALICE)] == [(1, 0, 0)]
    chain.move("side", "chain", first)
    chain.follow()
    assert chain.everything() == before


def test_a_pool_that_is_created_after_its_trades_and_is_not_any_more(chain: Chain) -> None:
    """Ranges of blocks arrive in any order, and a reorg takes only the creation."""
    trade = chain.block(2, NOON + timedelta(minutes=5))
    chain.trade(trade, "t", 0, (10**18, 3 * 10**6), (1, 1))
    chain.touch(trade)
    chain.follow()
    assert chain.token() is None
    creation = chain.block(1, NOON)
    chain.pool(creation)
    chain.touch(creation)
    chain.follow()
    token = chain.token()
    assert token is not None
    assert (token["price"], token["trades_1h"]) == (pytest.approx(3.0), 1)
    chain.move("chain", "side", creation)
    chain.follow()
    assert chain.token() is None


def test_a_transaction_that_moved_to_another_block_stays(chain: Chain) -> None:
    old = chain.block(1, NOON, "a")
    chain.transaction(old, "tx")
    chain.touch(old)
    chain.follow()
    chain.move("chain", "side", old)
    new = chain.block(2, NOON + timedelta(seconds=12), "b")
    chain.transaction(new, "tx")
    chain.touch(new)
    chain.follow()
    chain.touch(old)  # the orphaned block is replayed
    chain.follow()
    (document,) = chain.all(search.TRANSACTIONS_INDEX).values()
    assert document["block_hash"] == text(new)


def test_a_reorg_in_a_busy_wallets_past(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dash_pipeline.storage.search.documents.BUSY_ROWS", 3)

    def prefix() -> datetime | None:
        row = chain.conn.execute(
            "SELECT max(upto) FROM rollup.wallet_prefixes WHERE chain = %s AND wallet = %s", (chain.name, ALICE)
        ).fetchone()
        return row[0] if row else None

    blocks = []
    for i in range(12):
        blocks.append(chain.block(i, NOON + timedelta(minutes=10 * i)))
        chain.transaction(blocks[-1], f"t{i}", value=1)
        chain.transfer(blocks[-1], f"t{i}", 0, ALICE, BOB)
        chain.event(blocks[-1], f"t{i}", 1, "swap", amount0=1, amount1=1)
        chain.touch(blocks[-1])
        chain.follow()

    def alice() -> tuple[Any, ...]:
        (day,) = chain.wallet(ALICE)
        return tuple(day[name] for name in ("tx_sent", "value_out", "transfers_out", "swaps", "tokens"))

    assert alice() == (12, "12", 12, 12, 1)
    newest = prefix()
    assert newest is not None
    assert NOON + timedelta(minutes=60) < newest <= NOON + timedelta(minutes=110) - rollups.PREFIX_LAG
    # The second is in the middle of what is summed up, the eighth after the first hour's sum.
    for i in (7, 1):
        chain.move("chain", "side", blocks[i])
        chain.follow()
        assert alice() == (11, "11", 11, 11, 1)
        oldest = prefix()
        assert oldest is None or oldest <= NOON + timedelta(minutes=10 * i)
        chain.move("side", "chain", blocks[i])
        chain.follow()
        assert alice() == (12, "12", 12, 12, 1)


# ---------------------------------------------------------------------------------------------- crashes, outages


def test_a_writer_that_was_overtaken_loses(chain: Chain) -> None:
    first, _ = market(chain)
    stale = follower.next_version(chain.conn)
    chain.follow()
    before = chain.everything()
    name = f"token-performance-{chain.name}"
    id_ = f"{chain.name}:{text(TOKEN)}"
    action = '{"%s":{"_id":"%s","version":%d,"version_type":"external_gte"}}\n'
    written = bulk.write(
        chain.opensearch, name,
        [(action % ("index", id_, stale) + '{"price":666}\n').encode(), (action % ("delete", id_, stale)).encode()], 5,
    )  # fmt: skip
    assert (written.documents, written.conflicts) == (2, 2)
    assert chain.everything() == before
    chain.move("chain", "side", first)
    chain.follow()
    assert bulk.write(chain.opensearch, name, [(action % ("index", id_, stale) + "{}\n").encode()], 5).conflicts == 1
    assert chain.token() is None


def test_a_crash_before_the_outbox_is_cleared_repeats_harmlessly(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    market(chain)
    with monkeypatch.context() as patch:
        patch.setattr(follower, "_finish", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            chain.follow()
    before = chain.everything()
    assert chain.waiting() == 1
    assert chain.conn.execute("SELECT count(*) FROM ops.search_watermark WHERE topic = %s",
                              (f"{chain.name}.logs",)).fetchone() == (0,)  # fmt: skip
    chain.follow()
    assert chain.everything() == before
    assert chain.waiting() == 0
    assert chain.conn.execute("SELECT partition, next_offset FROM ops.search_watermark WHERE topic = %s",
                              (f"{chain.name}.logs",)).fetchall() == [(0, chain.offset)]  # fmt: skip


def test_a_failure_in_the_middle_of_a_statement_lets_go_of_the_chain(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise Unavailable("gone")

    block = chain.block(1, NOON)
    for i in range(500):
        chain.transaction(block, f"t{i}", tx_index=i)
    chain.touch(block)
    with monkeypatch.context() as patch:
        patch.setattr(bulk, "REQUEST_BYTES", 1)
        patch.setattr(bulk, "_send", fail)
        with pytest.raises(Unavailable, match="gone"):
            chain.follow()
    with search.connect(chain.settings) as other, follower.held(other, chain.name, wait=False) as free:
        assert free
    assert chain.follow().documents == 502


def test_the_watermark_does_not_go_back(chain: Chain) -> None:
    block = chain.block(1, NOON)
    for offset in (9, 4):
        timescale.write_outbox(chain.conn, chain.name, {block: NOON}, {(f"{chain.name}.logs", 0): offset})
        chain.follow()
    assert chain.conn.execute("SELECT next_offset FROM ops.search_watermark WHERE topic = %s",
                              (f"{chain.name}.logs",)).fetchone() == (9,)  # fmt: skip


def test_one_follower_at_a_time(chain: Chain) -> None:
    market(chain)
    with search.connect(chain.settings) as other, follower.held(other, chain.name, wait=False) as mine:
        assert mine
        progress = search.follow_once(chain.conn, chain.opensearch, chain.name)
        assert progress.held
        assert chain.waiting() == 1
    assert not chain.follow().held


@pytest.fixture
def running(chain: Chain) -> Iterator[search.Follower]:
    one = search.Follower(chain.settings, chain.name)
    yield one
    one.close(drain_timeout_s=0)


def test_a_follower_first_closes_the_gap_of_a_dead_run(chain: Chain, running: search.Follower) -> None:
    market(chain)
    running.start()
    running.close(drain_timeout_s=30)
    assert chain.waiting() == 0
    assert len(chain.all(search.TRANSACTIONS_INDEX)) == 2
    assert (running.pending, running.behind_s) == (0, 0)


def test_a_woken_follower_is_quick(chain: Chain, running: search.Follower) -> None:
    running.start()
    until(lambda: running.behind_s == 0, "the end of the backlog")
    market(chain)
    running.wake()
    assert running.behind_s > 0
    until(lambda: running.behind_s == 0, "the end of the backlog", 5)
    assert chain.waiting() == 0


def test_an_outage_of_the_index_only_delays_it(chain: Chain, running: search.Follower, stack: Stack) -> None:
    running.start()
    until(lambda: running.behind_s == 0, "the end of the backlog")
    stack.stop("opensearch")
    try:
        market(chain)
        running.wake()
        until(lambda: running.behind_s >= 3, "the index to be behind")
        assert chain.waiting() == running.pending == 1
        with pytest.raises(Unavailable, match="no connection"):
            search.token(chain.opensearch, chain.name, text(TOKEN))
    finally:
        stack.start("opensearch")
    running.close(drain_timeout_s=60)
    assert chain.waiting() == 0
    assert chain.token() is not None
    assert len(chain.all(search.TRANSACTIONS_INDEX)) == 2


def test_closing_during_an_outage_keeps_to_its_time(chain: Chain, running: search.Follower, stack: Stack) -> None:
    stack.stop("opensearch")
    try:
        market(chain)
        running.start()
        began = time.monotonic()
        running.close(drain_timeout_s=1)
        assert time.monotonic() - began < 8
        assert chain.waiting() == 1
    finally:
        stack.start("opensearch")


# ---------------------------------------------------------------------------------------------- rebuild


@pytest.mark.parametrize("index", search.INDEXES)
def test_a_rebuild_gives_the_same_documents(chain: Chain, index: str) -> None:
    market(chain)
    chain.follow()
    before = chain.everything()
    told: list[tuple[int, int]] = []
    written = search.rebuild(chain.settings, index, chain.name, lambda done, total: told.append((done, total)))
    assert written[chain.name].documents == len(before[index])
    assert told[0] == (0, 2)
    assert told[-1] == (2, 2)
    assert chain.everything() == before
    assert indexes.backing(chain.opensearch, index, chain.name) == [f"{index}-{chain.name}-000002"]
    assert not chain.opensearch.indices.exists(index=f"{index}-{chain.name}-000001")


def test_a_rebuild_needs_no_rollups_and_no_follower(chain: Chain) -> None:
    market(chain)
    chain.follow()
    before = chain.everything()
    for table in ("pool_candles", "pool_windows", "wallet_blocks"):
        chain.conn.execute(f"DELETE FROM rollup.{table} WHERE chain = %s", (chain.name,))
    for index in search.INDEXES:
        search.rebuild(chain.settings, index, chain.name)
    assert chain.everything() == before


def test_rebuilds_lose_nothing_that_is_written_meanwhile(chain: Chain, running: search.Follower) -> None:
    running.start()
    stop = threading.Event()

    def commit() -> None:
        with search.connect(chain.settings) as conn:
            writer = Chain(chain.name, chain.settings, conn, chain.opensearch)
            for i in range(100_000):
                block = writer.block(i, NOON + timedelta(seconds=i))
                writer.transaction(block, f"t{i}", sender=address(f"w{i}"))
                writer.transfer(block, f"t{i}", 0, ALICE, BOB)
                writer.touch(block)
                running.wake()
                if i > 20 and stop.is_set():
                    return

    thread = threading.Thread(target=commit)
    thread.start()
    until(lambda: search.outbox(chain.conn, chain.name).rows > 0, "rows in the outbox")
    try:
        for index in search.INDEXES * 2:
            search.rebuild(chain.settings, index, chain.name)
    finally:
        stop.set()
        thread.join()
    running.close(drain_timeout_s=30)
    (rows,) = (
        chain.conn.execute("SELECT count(*) FROM chain.transactions WHERE chain = %s", (chain.name,)).fetchone() or ()
    )
    for index, count in ((search.TRANSACTIONS_INDEX, rows), (search.WALLETS_INDEX, rows + 2), (search.TOKENS_INDEX, 1)):
        name = indexes.alias(index, chain.name)
        chain.opensearch.indices.refresh(index=name)
        assert chain.opensearch.count(index=name)["count"] == count, index
    assert [day["transfers_out"] for day in chain.wallet(ALICE)] == [rows]


def test_a_failed_rebuild_leaves_the_old_index_and_nothing_else(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    market(chain)
    chain.follow()
    before = chain.everything()
    monkeypatch.setattr("dash_pipeline.storage.search.documents.transaction_lines", lambda *args: iter([1 / 0]))
    with pytest.raises(ZeroDivisionError):
        search.rebuild(chain.settings, search.TRANSACTIONS_INDEX, chain.name)
    assert chain.everything() == before
    name = f"transactions-{chain.name}"
    assert list(chain.opensearch.indices.get(index=f"{name}-*")) == [f"{name}-000001"]
    assert chain.conn.execute("SELECT count(*) FROM ops.search_rebuilds").fetchone() == (0,)


def test_what_a_killed_rebuild_left_is_cleared_by_the_next(chain: Chain) -> None:
    market(chain)
    target = indexes.create_next(chain.opensearch, search.TRANSACTIONS_INDEX, chain.name)
    chain.insert("ops.search_rebuilds", index=search.TRANSACTIONS_INDEX, chain=chain.name, target=target)
    chain.follow()
    chain.opensearch.indices.refresh(index=target)
    assert chain.opensearch.count(index=target)["count"] == 2
    search.rebuild(chain.settings, search.TRANSACTIONS_INDEX, chain.name)
    assert chain.conn.execute("SELECT count(*) FROM ops.search_rebuilds").fetchone() == (0,)
    name = indexes.alias(search.TRANSACTIONS_INDEX, chain.name)
    (used,) = indexes.backing(chain.opensearch, search.TRANSACTIONS_INDEX, chain.name)
    assert list(chain.opensearch.indices.get(index=f"{name}-*")) == [used]
    assert len(chain.all(search.TRANSACTIONS_INDEX)) == 2


def test_rebuilds_that_cannot_be(chain: Chain) -> None:
    with pytest.raises(DashError, match="has no blocks of"):
        search.rebuild(chain.settings, search.TOKENS_INDEX, chain.name)
    chain.block(1, NOON)
    with (
        search.connect(chain.settings) as other,
        rebuilding._alone(other, search.TOKENS_INDEX, chain.name),
        pytest.raises(DashError, match="is being rebuilt already"),
    ):
        search.rebuild(chain.settings, search.TOKENS_INDEX, chain.name)
    with pytest.raises(DashError, match="is no index"):
        search.rebuild(chain.settings, "tokens", chain.name)


def test_indexes_are_made_once_and_get_new_fields(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    assert search.ensure(chain.settings, [chain.name]) == []
    wider = indexes.PROPERTIES[search.TOKENS_INDEX] | {"colour": {"type": "keyword"}}
    monkeypatch.setitem(indexes.PROPERTIES, search.TOKENS_INDEX, wider)
    assert search.ensure(chain.settings, [chain.name]) == []
    mapping = chain.opensearch.indices.get_mapping(index=f"token-performance-{chain.name}")
    assert "colour" in next(iter(mapping.values()))["mappings"]["properties"]


def test_a_deleted_index_is_made_again(chain: Chain, running: search.Follower) -> None:
    search.delete(chain.opensearch, chain.name)
    running.start()
    until(lambda: running.behind_s == 0, "the end of the backlog")
    search.delete(chain.opensearch, chain.name)
    market(chain)
    running.wake()
    running.close(drain_timeout_s=30)
    assert len(chain.all(search.TRANSACTIONS_INDEX)) == 2


def test_an_unreachable_database_is_one_line(schema: Settings) -> None:
    gone = schema.model_copy(update={"timescale_dsn": type(schema.timescale_dsn)("postgresql://x@127.0.0.1:1/x")})
    with pytest.raises(Unavailable, match=r"^database: "):
        search.rebuild(gone, search.TOKENS_INDEX)
