"""The recorded market, ingested: what is read of a wallet is what the recording says, also before the rollup has it."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from dash_pipeline.events.decode import decode
from dash_pipeline.feed.files import read_lines
from dash_pipeline.market import RECORDED
from dash_pipeline.models.wallet_features import COLUMNS, NO_HISTORY, SCHEMAS, WalletHistory, wallet_raw
from dash_pipeline.models.wallet_risk import SPEC, derive
from dash_pipeline.settings import Settings
from dash_pipeline.storage import wallet_history as storage
from dash_pipeline.storage.migrate import upgrade
from dash_pipeline.storage.search.rollups import Blocks, refresh_wallet_blocks
from dash_pipeline.storage.wallet_history import wallet_history
from dash_pipeline.topics import MAX_MESSAGE_BYTES, TYPES
from tests.chain import MAX, Messages, Topics, address, block
from tests.run import Run

FAR = datetime(2030, 1, 1, tzinfo=UTC)
# Messages of each topic that are committed together.
AT_ONCE = 1_000


@pytest.fixture(scope="module")
def recording() -> Messages:
    files = {type_: RECORDED / f"{type_}.jsonl.zst" for type_ in TYPES}
    return {type_: [line for _, line in read_lines(file)] for type_, file in files.items() if file.exists()}


@pytest.fixture(scope="module")
def ingested(database: Settings, recording: Messages) -> Iterator[Run]:
    """The market, committed as a lane commits it. The rollup has the first of two halves; the second is pending."""
    upgrade(database)
    run = Run(database, "market")
    topics = Topics(run.chain)
    rolled = False
    for start in range(0, max(map(len, recording.values())), AT_ONCE):
        run.take(topics.produce({type_: lines[start : start + AT_ONCE] for type_, lines in recording.items()}))
        if not rolled and start > len(recording["token_transfer"]) / 2:
            rolled = True
            roll_up(run)
    assert run.letters() == []
    assert rolled
    run.conn.execute("ANALYZE")
    yield run
    run.conn.close()


def roll_up(run: Run) -> None:
    """What the indexes' follower does for wallets, without the indexes."""
    days: dict[datetime, dict[bytes, datetime]] = {}
    rows = run.conn.execute(
        "SELECT block_hash, ts FROM chain.blocks WHERE chain = %s AND block_hash IN ("
        " SELECT unnest(blocks) FROM ops.search_outbox WHERE chain = %s)",
        (run.chain, run.chain),
    )
    for hash_, ts in rows:
        days.setdefault(ts.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0), {})[hash_] = ts
    for day, blocks in days.items():
        refresh_wallet_blocks(run.conn, run.chain, Blocks(day, list(blocks), min(blocks.values())))
    run.conn.execute("DELETE FROM ops.search_outbox WHERE chain = %s", (run.chain,))


@pytest.fixture(scope="module")
def wallets(ingested: Run) -> list[bytes]:
    """Every address that sent or received anything, or was created."""
    rows = ingested.conn.execute(
        "SELECT from_address FROM chain.transactions WHERE chain = %(c)s"
        " UNION SELECT to_address FROM chain.transactions WHERE chain = %(c)s AND to_address IS NOT NULL"
        " UNION SELECT receipt_contract_address FROM chain.transactions"
        "  WHERE chain = %(c)s AND receipt_contract_address IS NOT NULL"
        " UNION SELECT from_address FROM chain.token_transfers WHERE chain = %(c)s"
        " UNION SELECT to_address FROM chain.token_transfers WHERE chain = %(c)s ORDER BY 1",
        {"c": ingested.chain},
    ).fetchall()
    return [wallet for (wallet,) in rows]


def ordered(history: WalletHistory) -> tuple[pl.DataFrame, pl.DataFrame]:
    return (
        history.transactions.sort("wallet", "block_number", "tx_index"),
        history.transfers.sort("wallet", "block_number", "log_index"),
    )


def as_recorded(recording: Messages, wallets: list[bytes]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The same made of the recording itself."""
    frames = []
    for type_, index, parties in (
        ("transaction", "tx_index", ("from_address", "to_address", "receipt_contract_address")),
        ("token_transfer", "log_index", ("from_address", "to_address")),
    ):
        rows = decode(recording[type_], type_, "market", MAX_MESSAGE_BYTES).frame
        each = [rows.with_columns(wallet=pl.col(name)) for name in parties]
        rows = pl.concat(each).filter(pl.col("wallet").is_in(wallets)).unique(["wallet", "block_number", index])
        named = {"from_address": "sender", "to_address": "recipient"}
        if type_ == "token_transfer":
            rows = rows.rename({**named, "token_address": "token"}).with_columns(name=pl.lit(None, pl.String))
        else:
            rows = rows.rename(named)
        frames.append(rows)
    transactions, transfers = frames
    return ordered(
        WalletHistory(
            transactions.select(SCHEMAS["transactions"].keys()),
            transfers.select(SCHEMAS["transfers"].keys()),
        )
    )


def test_it_is_what_the_recording_says(ingested: Run, wallets: list[bytes], recording: Messages) -> None:
    (pending,) = ingested.conn.execute("SELECT count(*) FROM ops.search_outbox").fetchone() or (0,)
    (rolled,) = ingested.conn.execute("SELECT count(*) FROM rollup.wallet_blocks").fetchone() or (0,)
    assert pending, "some of it is found by the outbox"
    assert rolled, "some of it is found by the rollup"
    found = ordered(wallet_history(ingested.conn, ingested.chain, wallets, FAR))
    for frame, want in zip(found, as_recorded(recording, wallets), strict=True):
        assert frame.equals(want, null_equal=True)
        assert frame.height


def test_it_is_the_same_when_the_rollup_has_everything(ingested: Run, wallets: list[bytes]) -> None:
    before = wallet_history(ingested.conn, ingested.chain, wallets, FAR)
    with ingested.conn.transaction(force_rollback=True):
        roll_up(ingested)
        after = wallet_history(ingested.conn, ingested.chain, wallets, FAR)
    for one, other in zip(ordered(before), ordered(after), strict=True):
        assert one.equals(other, null_equal=True)


def test_one_wallet_alone_is_the_same_to_the_last_bit_as_among_many(ingested: Run, wallets: list[bytes]) -> None:
    """Raw columns and features, by the path of training (all at once) and of scoring (one as of now)."""
    together = wallet_raw(wallet_history(ingested.conn, ingested.chain, wallets, FAR), wallets)
    features = derive({name: together[name].to_numpy() for name in SPEC.columns})
    for i, wallet in enumerate(wallets):
        alone = wallet_raw(wallet_history(ingested.conn, ingested.chain, [wallet], FAR), [wallet], FAR)
        assert alone.equals(together[i])
        made = derive({name: alone[name].to_numpy() for name in SPEC.columns})
        for name, values in made.items():
            assert values.tobytes() == features[name][i : i + 1].tobytes(), name


def test_only_what_was_there_at_the_time_is_read(ingested: Run, wallets: list[bytes]) -> None:
    rng = random.Random(3)
    everything = wallet_history(ingested.conn, ingested.chain, wallets, FAR)
    first, last = everything.transactions["ts"].min(), everything.transactions["ts"].max()
    assert isinstance(first, datetime)
    assert isinstance(last, datetime)
    for _ in range(5):
        until = first + timedelta(seconds=rng.randrange(int((last - first).total_seconds())))
        found = wallet_history(ingested.conn, ingested.chain, wallets, until)
        assert found.transactions.height < everything.transactions.height
        assert wallet_raw(found, wallets).equals(wallet_raw(everything, wallets, until))
    before = wallet_raw(wallet_history(ingested.conn, ingested.chain, wallets, first - timedelta(seconds=1)), wallets)
    assert set(before["reason"]) == {NO_HISTORY}


def test_wallets_nobody_knows_have_zeros_and_a_reason(ingested: Run, wallets: list[bytes]) -> None:
    unknown = b"\x07" * 20
    raw = wallet_raw(
        wallet_history(ingested.conn, ingested.chain, [unknown, wallets[0]], FAR), [unknown, wallets[0]], FAR
    )
    assert raw["reason"].to_list() == [NO_HISTORY, None]
    assert raw.select(COLUMNS).row(0) == (0.0,) * len(COLUMNS)
    elsewhere = wallet_raw(wallet_history(ingested.conn, "ethereum", wallets, FAR), wallets)
    assert set(elsewhere["reason"]) == {NO_HISTORY}, "another chain's rows are not looked at"
    assert wallet_raw(wallet_history(ingested.conn, ingested.chain, [], FAR), []).height == 0


@pytest.mark.parametrize("rolled", [False, True])
def test_of_a_long_history_the_oldest_rows_are_read(
    ingested: Run, wallets: list[bytes], monkeypatch: pytest.MonkeyPatch, *, rolled: bool
) -> None:
    everything = wallet_history(ingested.conn, ingested.chain, wallets, FAR)
    monkeypatch.setattr(storage, "OLDEST", 7)
    monkeypatch.setattr("dash_pipeline.models.wallet_features.OLDEST", 7)
    with ingested.conn.transaction(force_rollback=True):
        if rolled:
            roll_up(ingested)
        found = wallet_history(ingested.conn, ingested.chain, wallets, FAR)
    assert found.transactions.height < everything.transactions.height / 2
    assert found.transfers.height < everything.transfers.height
    assert wallet_raw(found, wallets).equals(wallet_raw(everything, wallets))


def test_the_largest_amounts_names_and_nfts(database: Settings, ingested: Run, unique: Callable[[str], str]) -> None:
    run = Run(database, unique("c"))
    topics = Topics(run.chain)
    run.take(topics.produce(block("A0", "-")))
    wallet = bytes.fromhex(address("wallet")[2:])
    read: Callable[[], dict[str, Any]] = lambda: wallet_raw(  # noqa: E731
        wallet_history(run.conn, run.chain, [wallet], FAR), [wallet]
    ).to_dicts()[0]
    row = read()
    assert (row["sent"], row["max_sent"], row["erc20_max_sent"]) == (2, MAX / 1e18, MAX / 1e18)
    assert row["reason"] is None

    token = bytes.fromhex(address("token")[2:])
    columns = "chain, ts, block_number, block_hash, address"
    source = "SELECT chain, ts, block_number, block_hash, %s::bytea FROM chain.blocks WHERE chain = %s"
    run.conn.execute(f"INSERT INTO chain.tokens ({columns}, name) SELECT x.*, 'Gold' FROM ({source}) x",
                     (token, run.chain))  # fmt: skip
    history = wallet_history(run.conn, run.chain, [wallet], FAR)
    assert history.transfers["name"].to_list() == ["Gold"]
    run.conn.execute(f"INSERT INTO chain.contracts ({columns}, is_erc721) SELECT x.*, true FROM ({source}) x",
                     (token, run.chain))  # fmt: skip
    assert read()["erc20_txs"] == 0, "an ERC-721's amount is an id"
    roll_up(run)
    assert read()["erc20_txs"] == 0
    run.conn.execute("UPDATE chain.contracts SET is_erc20 = true WHERE chain = %s AND address = %s", (run.chain, token))
    assert read()["erc20_txs"] == 1
    run.conn.close()


def test_it_is_quick(ingested: Run, wallets: list[bytes]) -> None:
    """Generous, for a machine that others use too: the figures are the benchmark's."""
    took = []
    for wallet in wallets[:40]:
        began = time.perf_counter()
        raw = wallet_raw(wallet_history(ingested.conn, ingested.chain, [wallet], FAR), [wallet])
        derive({name: raw[name].to_numpy() for name in SPEC.columns})
        took.append(time.perf_counter() - began)
    assert statistics.median(took) < 0.25
    assert np.isfinite(raw.select(COLUMNS).to_numpy()).all()
