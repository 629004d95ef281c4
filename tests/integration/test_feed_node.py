"""Following a real node (anvil) with the real ethereum-etl: reorgs of every kind, restarts, and the child's end.

Kafka is not needed to see what would be published; `test_feed_kafka.py` has the broker.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dash_pipeline import market
from dash_pipeline.chains import Chain, load_chains
from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.feed.exporter import Exporter, ensure_exporter
from dash_pipeline.feed.follow import Followed, Follower
from dash_pipeline.feed.live import ENTITIES
from dash_pipeline.feed.node import ask, hash_at, head_of
from tests.wait import until

PATIENCE_S = 30.0
VALUE = hex(10**15)


class Recorder:
    """A sink that keeps what it is sent."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.delivered: Counter[str] = Counter()

    def send(self, topic: str, value: bytes, key: bytes | None) -> None:
        self.rows.append(msgspec.json.decode(value))
        self.delivered[topic] += 1

    def flush(self) -> None:
        """Everything has arrived already."""

    def of(self, type_: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["type"] == type_]

    def branch(self) -> dict[int, str | None]:
        """number -> hash: of blocks published twice at a height, the later one."""
        return {row["number"]: row["hash"] for row in self.of("block")}


class Node:
    """A running anvil, and what the tests do to it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.accounts: list[str] = ask(url, "eth_accounts")

    def mine(self, blocks: int) -> None:
        """Blocks with a transfer each."""
        for number in range(blocks):
            self.transfer(number % 50)
            ask(self.url, "evm_mine")

    def transfer(self, account: int) -> None:
        origin, target = self.accounts[account], self.accounts[account + 1]
        ask(self.url, "eth_sendTransaction", {"from": origin, "to": target, "value": VALUE, "gas": hex(21000)})

    def reorg(self, depth: int) -> None:
        """The newest `depth` blocks become others: same height, empty."""
        ask(self.url, "anvil_reorg", depth, [])

    def roll_back(self, depth: int) -> None:
        """The newest `depth` blocks are gone."""
        ask(self.url, "anvil_rollback", depth)

    def branch(self) -> dict[int, str | None]:
        return {number: hash_at(self.url, number) for number in range(head_of(self.url) + 1)}


@pytest.fixture(scope="module")
def home() -> Path:
    return market.install(market.market_home())


@pytest.fixture(scope="module")
def program() -> Path:
    return ensure_exporter()


@pytest.fixture
def node(home: Path) -> Iterator[Node]:
    with market.anvil(home, market.free_port()) as url:
        yield Node(url)


@pytest.fixture
def chain() -> Chain:
    return load_chains()["anvil"]


Make = Callable[..., Follower]


@pytest.fixture
def follower(node: Node, chain: Chain, program: Path, tmp_path: Path) -> Make:
    """Makes followers that share a trail, as runs of one command do."""

    def make(sink: Recorder, **options: Any) -> Follower:
        def start(number: int) -> Exporter:
            return Exporter(program, node.url, number, ENTITIES)

        return Follower(node.url, chain, sink, start, tmp_path / "trail.json", **options)

    return make


@contextmanager
def running(make: Make, sink: Recorder) -> Iterator[list[Followed]]:
    """A follower in a thread for as long as the block lasts; its result is in the list afterwards."""
    stop = threading.Event()
    results: list[Followed] = []
    thread = threading.Thread(target=lambda: results.append(make(sink, stop=stop.is_set).run()))
    thread.start()
    try:
        yield results
    finally:
        stop.set()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert results, "the follower ended with an error"


def assert_whole(sink: Recorder, node: Node) -> None:
    """Every block that the node has is published, and so is every transaction in it."""
    wanted = {ask(node.url, "eth_getBlockByNumber", hex(number), False)["hash"] for number in sink.branch()}
    assert wanted <= {row["hash"] for row in sink.of("block")}
    published = {(row["block_hash"], row["hash"]) for row in sink.of("transaction")}
    for number in range(head_of(node.url) + 1):
        block = ask(node.url, "eth_getBlockByNumber", hex(number), False)
        assert {(block["hash"], hash_) for hash_ in block["transactions"]} <= published


def test_from_the_first_block_to_the_height_of_now(node: Node, follower: Make) -> None:
    node.mine(45)
    sink = Recorder()
    followed = follower(sink).run(once=True)
    assert followed.sent == {"block": 46, "transaction": 45}
    assert followed.last_block == 45
    assert sink.branch() == node.branch()


def test_a_second_run_goes_on_where_the_first_ended(node: Node, follower: Make) -> None:
    node.mine(5)
    follower(Recorder()).run(once=True)
    node.mine(3)
    sink = Recorder()
    assert follower(sink).run(once=True).sent == {"block": 3, "transaction": 3}
    assert sorted(sink.branch()) == [6, 7, 8]
    assert not follower(Recorder()).run(once=True).sent
    assert follower(Recorder()).run(once=True, from_block=7).sent["block"] == 2


@pytest.mark.parametrize("depth", [1, 6, 64, 256])
def test_a_reorg_between_two_runs(node: Node, follower: Make, depth: int) -> None:
    node.mine(270)
    follower(Recorder()).run(once=True)
    node.reorg(depth)
    node.mine(2)
    sink = Recorder()
    followed = follower(sink).run(once=True)
    assert followed.reorgs == [(271 - depth, depth)]
    assert sorted(sink.branch()) == list(range(271 - depth, 273))
    assert sink.branch().items() <= node.branch().items()


@pytest.mark.parametrize("depth", [1, 6, 64, 256])
def test_a_reorg_that_keeps_the_height(node: Node, follower: Make, depth: int) -> None:
    """No new block comes whose parent would give it away."""
    node.mine(260)
    sink = Recorder()
    with running(follower, sink) as results:
        until(lambda: len(sink.branch()) == 261, "the blocks")
        node.reorg(depth)
        until(lambda: sink.branch() == node.branch(), "the blocks")
    assert results[0].reorgs == [(261 - depth, depth)]
    assert_whole(sink, node)


def test_a_reorg_to_a_longer_branch(node: Node, follower: Make) -> None:
    node.mine(20)
    sink = Recorder()
    with running(follower, sink):
        until(lambda: len(sink.branch()) == 21, "the blocks")
        node.reorg(4)
        node.mine(30)
        until(lambda: sink.branch() == node.branch(), "the blocks")
    assert_whole(sink, node)


def test_a_reorg_to_a_shorter_branch(node: Node, follower: Make) -> None:
    node.mine(20)
    sink = Recorder()
    with running(follower, sink):
        until(lambda: len(sink.branch()) == 21, "the blocks")
        node.roll_back(6)
        node.transfer(7)  # or the block would be the one that is gone
        node.mine(2)
        until(lambda: node.branch().items() <= sink.branch().items(), "the blocks")
        assert head_of(node.url) < 20
        node.mine(10)
        until(lambda: sink.branch() == node.branch(), "the blocks")
    assert_whole(sink, node)


def test_one_reorg_after_the_other(node: Node, follower: Make) -> None:
    node.mine(12)
    sink = Recorder()
    with running(follower, sink) as results:
        for depth in (2, 5, 1, 8):
            until(lambda: sink.branch() == node.branch(), "the blocks")
            node.reorg(depth)
            node.mine(1)
        until(lambda: sink.branch() == node.branch(), "the blocks")
    assert len(results[0].reorgs) >= 4
    assert_whole(sink, node)


def test_a_reorg_below_the_block_that_was_the_first(node: Node, follower: Make) -> None:
    node.mine(20)
    follower(Recorder()).run(once=True, from_block=18)
    node.reorg(9)
    sink = Recorder()
    follower(sink).run(once=True)
    assert sorted(sink.branch()) == [18, 19, 20]


def test_a_node_that_was_started_anew(
    node: Node, follower: Make, chain: Chain, program: Path, home: Path, tmp_path: Path
) -> None:
    node.mine(4)
    follower(Recorder()).run(once=True)
    with market.anvil(home, market.free_port(), "--timestamp", "1700000000") as other:
        Node(other).mine(4)
        ours = Follower(
            other, chain, Recorder(), lambda number: Exporter(program, other, number, ENTITIES), tmp_path / "trail.json"
        )
        with pytest.raises(DashError, match="holds another chain"):
            ours.run(once=True)


def test_a_node_of_another_chain(node: Node, program: Path, tmp_path: Path) -> None:
    ethereum = load_chains()["ethereum"]
    ours = Follower(node.url, ethereum, Recorder(), lambda _: pytest.fail("started"), tmp_path / "trail.json")
    with pytest.raises(DashError, match="chain id 31337, but ethereum is 1"):
        ours.run(once=True)


def test_a_node_that_goes_away(chain: Chain, program: Path, home: Path, tmp_path: Path) -> None:
    sink = Recorder()
    errors: list[Exception] = []

    def run(url: str) -> None:
        def start(number: int) -> Exporter:
            return Exporter(program, url, number, ENTITIES)

        try:
            Follower(url, chain, sink, start, tmp_path / "trail.json", patience_s=2).run()
        except Unavailable as error:
            errors.append(error)

    with market.anvil(home, market.free_port()) as url:
        Node(url).mine(3)
        thread = threading.Thread(target=run, args=(url,))
        thread.start()
        until(lambda: len(sink.branch()) == 4, "the blocks")
    thread.join(PATIENCE_S)
    assert "no new block for 2 s: the node does not answer" in str(errors[0])


def test_traces_and_contracts(node: Node, chain: Chain, program: Path, tmp_path: Path) -> None:
    node.mine(2)
    sink = Recorder()
    types = [*ENTITIES, "trace", "contract"]
    Follower(
        node.url, chain, sink, lambda number: Exporter(program, node.url, number, types), tmp_path / "trail.json"
    ).run(once=True)
    assert len(sink.of("trace")) >= 2


def test_an_exporter_that_ends_by_itself(node: Node, program: Path) -> None:
    with (
        Exporter(program, node.url, 0, ["no_such_type"]) as exporter,
        pytest.raises(DashError, match="ended by itself"),
    ):
        exporter.next_batch(PATIENCE_S)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_the_exporter_does_not_outlive_us(node: Node, program: Path) -> None:
    """Not when we end, and not when we are killed."""
    with Exporter(program, node.url, 0, ENTITIES) as exporter:
        exporter.next_batch(1)
        pid = exporter.pid
        assert is_alive(pid)
    assert not is_alive(pid)

    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from dash_pipeline.feed.exporter import Exporter;"
            "exporter = Exporter(Path(sys.argv[1]), sys.argv[2], 0, ['block']); print(exporter.pid, flush=True);"
            "time.sleep(60)",
            str(program),
            node.url,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    orphan = int(parent.stdout.readline())
    assert is_alive(orphan)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    until(lambda: not is_alive(orphan), "the end of the orphan")
