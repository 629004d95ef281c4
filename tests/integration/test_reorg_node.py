"""Reorgs of a real node, through the real exporter, the broker and a lane, at depths 1 to 256: the tables hold exactly
the node's chain, everything else is aside, and the depth is on record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dash_pipeline import market, topics
from dash_pipeline.chains import Chain, load_chains
from dash_pipeline.events.abi import EVENTS
from dash_pipeline.feed.exporter import Exporter, ensure_exporter
from dash_pipeline.feed.follow import Follower
from dash_pipeline.feed.live import ENTITIES
from dash_pipeline.feed.node import ask, head_of
from dash_pipeline.feed.publish import KafkaSink
from dash_pipeline.feed.wait import end_offsets
from dash_pipeline.microbatch.drain import Checkpoint, Limits, drain
from dash_pipeline.microbatch.lanes import lane
from dash_pipeline.settings import Settings
from dash_pipeline.storage import timescale as db
from dash_pipeline.storage.migrate import upgrade

DEPTHS = (1, 6, 64, 256)
TOPIC0 = {(e.protocol, e.name): e.topic0 for e in EVENTS}
# A contract that answers any call with Sync(block number, 1) and Transfer(caller, itself, block number).
RUNTIME = (
    "43600052" "6001602052"
    f"7f{TOPIC0['uniswap_v2', 'sync']}" "60406000a1"
    f"3033" f"7f{TOPIC0['erc20', 'transfer']}" "60206000a3"
    "00"
)  # fmt: skip
INIT = f"60{len(RUNTIME) // 2:02x}600c60003960{len(RUNTIME) // 2:02x}6000f3" + RUNTIME


class Node:
    """A running anvil with the contract, and calls to it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.account, self.other = ask(url, "eth_accounts")[:2]
        deploy = {"from": self.account, "data": "0x" + INIT, "gas": hex(500_000)}
        hash_ = ask(url, "eth_sendTransaction", deploy)
        ask(url, "evm_mine")
        self.pool: str = ask(url, "eth_getTransactionReceipt", hash_)["contractAddress"]

    def call(self, account: str) -> dict[str, str]:
        return {"from": account, "to": self.pool, "gas": hex(100_000)}

    def mine(self, blocks: int) -> None:
        """Blocks with a call each."""
        for _ in range(blocks):
            ask(self.url, "eth_sendTransaction", self.call(self.account))
            ask(self.url, "evm_mine")

    def reorg(self, depth: int) -> None:
        """The newest `depth` blocks become others, with another account's call in the first; two more follow."""
        ask(self.url, "anvil_reorg", depth, [[self.call(self.other), 0]])
        self.mine(2)

    def blocks(self) -> dict[int, dict[str, Any]]:
        return {n: ask(self.url, "eth_getBlockByNumber", hex(n), False) for n in range(head_of(self.url) + 1)}

    def logs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = ask(self.url, "eth_getLogs", {"fromBlock": "0x0", "toBlock": "latest"})
        return found


@pytest.fixture(scope="module")
def program() -> Path:
    return ensure_exporter()


@pytest.fixture
def node() -> Iterator[Node]:
    with market.anvil(market.install(market.market_home()), market.free_port()) as url:
        yield Node(url)


@pytest.fixture
def chain(unique: Callable[[str], str]) -> Chain:
    """The local chain, with topics of the test's own."""
    return load_chains()["anvil"].model_copy(update={"name": unique("c")})


class Pipeline:
    """Node -> exporter -> broker -> lane -> tables, a step at a time."""

    def __init__(self, settings: Settings, chain: Chain, node: Node, program: Path, trail: Path) -> None:
        self.settings, self.chain, self.node = settings, chain, node
        self._program, self._trail = program, trail
        topics.ensure(settings, [chain.name])

    def feed(self) -> None:
        with KafkaSink(self.settings) as sink:
            Follower(
                self.node.url,
                self.chain,
                sink,
                lambda number: Exporter(self._program, self.node.url, number, ENTITIES),
                self._trail,
            ).run(once=True)

    def drain(self) -> Checkpoint:
        partitions = end_offsets(self.settings, topics.chain_topics(self.chain.name))
        done = drain(self.settings, lane(self.chain.name, partitions), Limits(idle_timeout_s=1.5), "run")
        assert done.lag_after == 0
        assert done.dead_letters == 0
        return done

    def query(self, text: str) -> list[tuple[Any, ...]]:
        with db.connect(self.settings) as conn:
            return conn.execute(text, (self.chain.name,)).fetchall()

    def check(self) -> set[str]:
        """The tables are the node's chain. Returns the hashes of its blocks."""
        blocks, logs = self.node.blocks(), self.node.logs()
        got = self.query("SELECT block_number, '0x' || encode(block_hash, 'hex') FROM chain.blocks WHERE chain = %s")
        assert sorted(got) == sorted((n, b["hash"]) for n, b in blocks.items())
        got = self.query(
            "SELECT '0x' || encode(block_hash, 'hex'), '0x' || encode(tx_hash, 'hex') FROM chain.transactions"
            " WHERE chain = %s"
        )
        assert sorted(got) == sorted((b["hash"], tx) for b in blocks.values() for tx in b["transactions"])
        got = self.query(
            "SELECT '0x' || encode(block_hash, 'hex'), log_index, '0x' || encode(topic0, 'hex'),"
            " '0x' || encode(data, 'hex') FROM chain.logs WHERE chain = %s"
        )
        assert sorted(got) == sorted((x["blockHash"], int(x["logIndex"], 16), x["topics"][0], x["data"]) for x in logs)
        got = self.query(
            "SELECT '0x' || encode(block_hash, 'hex'), log_index FROM chain.token_transfers WHERE chain = %s"
        )
        transfer = "0x" + TOPIC0["erc20", "transfer"]
        assert sorted(got) == sorted(
            (x["blockHash"], int(x["logIndex"], 16)) for x in logs if x["topics"][0] == transfer
        )
        events = self.query(
            "SELECT event, '0x' || encode(block_hash, 'hex'), coalesce(reserve0, amount0) FROM chain.pool_events"
            " WHERE chain = %s"
        )
        assert sorted((e, h, int(n)) for e, h, n in events) == sorted(
            ("transfer" if x["topics"][0] == transfer else "sync", x["blockHash"], int(x["blockNumber"], 16))
            for x in logs
        )
        return {block["hash"] for block in blocks.values()}

    def aside(self) -> dict[str, set[str]]:
        return {
            table: {
                h for (h,) in self.query(f"SELECT '0x' || encode(block_hash, 'hex') FROM side.{table} WHERE chain = %s")
            }
            for table in ("blocks", "transactions", "logs", "token_transfers", "pool_events")
        }


def test_reorgs_of_a_real_node(
    fresh_database: Settings, chain: Chain, node: Node, program: Path, tmp_path: Path
) -> None:
    upgrade(fresh_database)
    pipeline = Pipeline(fresh_database, chain, node, program, tmp_path / "trail.json")
    node.mine(269)
    pipeline.feed()
    assert pipeline.drain().reorgs == 0
    seen = pipeline.check()
    assert pipeline.aside() == {table: set() for table in pipeline.aside()}
    for depth in DEPTHS:
        tip = head_of(node.url)
        node.reorg(depth)
        pipeline.feed()
        assert pipeline.drain().reorgs == 1
        canonical = pipeline.check()
        seen |= canonical
        assert pipeline.aside()["blocks"] == seen - canonical
        newest = pipeline.query(
            "SELECT depth, fork_number, old_tip_number, new_tip_number, orphaned_blocks FROM ops.reorgs"
            " WHERE chain = %s ORDER BY id DESC LIMIT 1"
        )
        assert newest == [(depth, tip - depth, tip, tip + 2, depth)]
    assert [d for (d,) in pipeline.query("SELECT depth FROM ops.reorgs WHERE chain = %s ORDER BY id")] == list(DEPTHS)
    # Orphaned blocks whose calls are gone are aside with all their rows: of all blocks but the first two, one each.
    aside = pipeline.aside()
    assert aside["transactions"] == aside["logs"] == aside["token_transfers"] == aside["pool_events"]
    assert aside["transactions"] <= aside["blocks"]
    assert len(aside["transactions"]) >= 250
    assert pipeline.query("SELECT count(*) FROM ops.dead_letters WHERE topic LIKE %s || '.%%'") == [(0,)]
