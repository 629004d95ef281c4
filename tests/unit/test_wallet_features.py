"""Raw columns of wallet_risk against the data set's definitions, written down again row by row, and at the edges."""

from __future__ import annotations

import math
import statistics
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from dash_pipeline.events.decode import decode
from dash_pipeline.feed.files import read_lines
from dash_pipeline.market import RECORDED
from dash_pipeline.models import wallet_features
from dash_pipeline.models.wallet_features import COLUMNS, NO_HISTORY, SCHEMAS, WalletHistory, empty, wallet_raw
from dash_pipeline.models.wallet_risk import SPEC, derive
from dash_pipeline.topics import MAX_MESSAGE_BYTES

BEGIN = datetime(2024, 6, 1, tzinfo=UTC)
ME, ANN, BOB, TOKEN, OTHER = (bytes([n]) * 20 for n in (1, 2, 3, 4, 5))
ETHER = 10**18
MAX = float(2**256 - 1)


class Made:
    """A wallet's history written by hand; each call is one block, `minutes` after the one before."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SCHEMAS}
        self.block = self.minute = 0

    def _add(self, frame: str, minutes: int, index: str, **values: Any) -> Made:
        self.block, self.minute = self.block + 1, self.minute + minutes
        place = {"ts": BEGIN + timedelta(minutes=self.minute), "block_number": self.block, index: 0}
        self.rows[frame].append({"wallet": ME, **place, **values})
        return self

    def tx(self, sender: bytes, recipient: bytes | None, value: float, minutes: int = 10) -> Made:
        return self._add("transactions", minutes, "tx_index", sender=sender, recipient=recipient, value_f=float(value))

    def token(
        self, sender: bytes, recipient: bytes, value: float, token: bytes = TOKEN, name: str | None = None
    ) -> Made:
        moved = {"sender": sender, "recipient": recipient, "value_f": float(value), "token": token, "name": name}
        return self._add("transfers", 10, "log_index", **moved)

    def history(self, shuffle: int | None = None) -> WalletHistory:
        frames = [pl.DataFrame(rows, schema=SCHEMAS[name]) for name, rows in self.rows.items()]
        if shuffle is not None:
            frames = [frame.sample(fraction=1, shuffle=True, seed=shuffle) for frame in frames]
        return WalletHistory(*frames)

    def raw(self, as_of: datetime | None = None) -> dict[str, Any]:
        frame = wallet_raw(self.history(), [ME], as_of)
        assert frame.columns == ["wallet", *COLUMNS, "reason"]
        assert frame.schema == {"wallet": pl.Binary, **dict.fromkeys(COLUMNS, pl.Float64), "reason": pl.String}
        for shuffle in range(3):
            assert wallet_raw(self.history(shuffle), [ME], as_of).equals(frame), "rows come in any order"
        (row,) = frame.to_dicts()
        return row


def nonzero(row: dict[str, Any]) -> dict[str, float]:
    return {name: row[name] for name in COLUMNS if row[name]}


# --- the definitions


def test_transactions() -> None:
    row = Made().tx(ANN, ME, 2 * ETHER).tx(ME, BOB, ETHER // 2).tx(ANN, ME, ETHER, 20).tx(ME, BOB, ETHER, 5).raw()
    assert nonzero(row) == {
        "avg_min_between_sent": 7.5, "avg_min_between_received": 10.0, "lifetime_min": 35.0, "sent": 2, "received": 2,
        "uniq_received_from": 1, "uniq_sent_to": 1, "min_received": 1.0, "max_received": 2.0, "avg_received": 1.5,
        "min_sent": 0.5, "max_sent": 1.0, "avg_sent": 0.75, "total_txs": 4, "ether_sent": 1.5, "ether_received": 3.0,
        "ether_balance": 1.5,
    }  # fmt: skip
    assert row["reason"] is None


def test_one_sent_transaction_has_no_time_between() -> None:
    row = Made().tx(ANN, ME, ETHER).tx(ME, BOB, ETHER).raw()
    assert row["avg_min_between_sent"] == row["avg_min_between_received"] == 0
    assert row["lifetime_min"] == 10


def test_creating_contracts() -> None:
    row = Made().tx(ME, None, 0).tx(ME, None, ETHER).tx(ME, BOB, ETHER).raw()
    assert nonzero(row) == {
        "avg_min_between_sent": 6.67, "lifetime_min": 20.0, "sent": 3, "created_contracts": 2, "uniq_sent_to": 2,
        "max_sent": 1.0, "avg_sent": 0.666667, "max_sent_contract": 1.0, "avg_sent_contract": 0.5, "total_txs": 5,
        "ether_sent": 2.0, "ether_sent_contracts": 1.0, "ether_balance": -3.0,
    }  # fmt: skip


def test_a_contract_counts_its_own_creation() -> None:
    row = Made().tx(ANN, None, 0).tx(BOB, ME, ETHER).raw()
    assert (row["created_contracts"], row["received"], row["sent"], row["total_txs"]) == (1, 1, 0, 2)
    assert row["lifetime_min"] == 10


def test_what_one_pays_oneself_is_sent_and_received() -> None:
    row = Made().tx(ME, ME, ETHER).raw()
    assert (row["sent"], row["received"], row["total_txs"], row["ether_balance"]) == (1, 1, 2, 0)
    row = Made().token(ME, ME, ETHER).raw()
    assert (row["erc20_txs"], row["erc20_sent"], row["erc20_received"]) == (2, 1, 1)


def test_transfers() -> None:
    row = (
        Made()
        .token(ANN, ME, 4 * ETHER, TOKEN, "A")
        .token(BOB, ME, ETHER, OTHER, "A")
        .token(ME, BOB, 2 * ETHER, TOKEN, "A")
        .token(ME, BOB, ETHER, OTHER)
        .raw()
    )
    assert nonzero(row) == {
        "erc20_txs": 4, "erc20_received": 5.0, "erc20_sent": 3.0, "erc20_uniq_sent_to": 1,
        "erc20_uniq_received_from": 2, "erc20_uniq_received_contract": 2, "erc20_min_received": 1.0,
        "erc20_max_received": 4.0, "erc20_avg_received": 2.5, "erc20_min_sent": 1.0, "erc20_max_sent": 2.0,
        "erc20_avg_sent": 1.5, "erc20_tokens_sent": 2, "erc20_tokens_received": 1,
    }  # fmt: skip
    assert row["reason"] is None, "tokens alone are a history"


def test_a_token_contract_counts_its_own_token() -> None:
    row = Made().token(ANN, ME, 3 * ETHER, ME).token(ME, BOB, ETHER, ME).raw()
    assert (row["erc20_txs"], row["erc20_sent_contract"], row["erc20_uniq_sent_contract"]) == (4, 4.0, 2)


# --- the recorded market


@pytest.fixture(scope="module")
def market() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Transactions and token transfers of the recorded market, as in the tables."""
    frames = []
    for type_ in ("transaction", "token_transfer"):
        lines = [line for _, line in read_lines(RECORDED / f"{type_}.jsonl.zst")]
        found = decode(lines, type_, "anvil", MAX_MESSAGE_BYTES)
        assert not found.rejects
        frames.append(found.frame)
    return frames[0], frames[1]


@pytest.fixture(scope="module")
def known(market: tuple[pl.DataFrame, pl.DataFrame]) -> tuple[list[bytes], WalletHistory]:
    """All of the market's wallets and contracts, and their history."""
    transactions, transfers = market
    txs = transactions.rename({"from_address": "sender", "to_address": "recipient"})
    moves = transfers.rename({"from_address": "sender", "to_address": "recipient", "token_address": "token"})
    moves = moves.with_columns(name=pl.lit(None, pl.String))
    parts = {}
    for name, frame, who in (
        ("transactions", txs, ("sender", "recipient", "receipt_contract_address")),
        ("transfers", moves, ("sender", "recipient")),
    ):
        each = [frame.with_columns(wallet=pl.col(column)).filter(pl.col("wallet").is_not_null()) for column in who]
        index = "tx_index" if name == "transactions" else "log_index"
        rows = pl.concat(each).unique(["wallet", "block_number", index])
        parts[name] = rows.select(SCHEMAS[name].keys()).cast(SCHEMAS[name])  # type: ignore[arg-type]
    history = WalletHistory(**parts)
    wallets = pl.concat([history.transactions["wallet"], history.transfers["wallet"]]).unique().sort().to_list()
    return wallets, history


def as_published(wallet: bytes, transactions: pl.DataFrame, transfers: pl.DataFrame) -> dict[str, float]:
    """The data set's program, row by row, as far as what it computes is in COLUMNS."""
    transactions = transactions.filter(
        pl.any_horizontal(pl.col("from_address", "to_address", "receipt_contract_address") == wallet)
    )
    transfers = transfers.filter(pl.any_horizontal(pl.col("from_address", "to_address") == wallet))
    times: list[datetime] = []
    gaps: dict[str, list[float]] = {"sent": [], "received": []}
    who: dict[str, list[Any]] = {"sent": [], "received": []}
    ether: dict[str, list[float]] = {"sent": [], "received": [], "contract": []}
    for tx in transactions.sort("block_number", "tx_index").to_dicts():
        times.append(tx["ts"])
        gap = (times[-1] - times[max(len(times) - 2, 0)]).total_seconds() / 60
        value = int(tx["value"]) / 10**18
        for way, mine, other in (("received", "to_address", "from_address"), ("sent", "from_address", "to_address")):
            if tx[mine] == wallet:
                gaps[way].append(gap)
                who[way].append(tx[other])
                ether[way].append(value)
        if tx["to_address"] is None:
            ether["contract"].append(value)
    moved: dict[str, list[dict[str, Any]]] = {"sent": [], "received": [], "own": []}
    for move in transfers.to_dicts():
        moved["received"] += [move] * (move["to_address"] == wallet)
        moved["sent"] += [move] * (move["from_address"] == wallet)
        moved["own"] += [move] * (move["token_address"] == wallet)
    tokens = {way: [int(move["value"]) / 10**18 for move in some] for way, some in moved.items()}

    def spread(prefix: str, suffix: str, values: list[float]) -> dict[str, float]:
        found = (min(values), max(values), statistics.mean(values)) if values else (0.0, 0.0, 0.0)
        return {f"{prefix}{kind}_{suffix}": round(x, 6) for kind, x in zip(("min", "max", "avg"), found, strict=True)}

    def different(way: str, column: str) -> int:
        return len({move[column] for move in moved[way]})

    return {
        **{f"avg_min_between_{w}": round(statistics.mean(g), 2) if len(g) > 1 else 0.0 for w, g in gaps.items()},
        "lifetime_min": round((times[-1] - times[0]).total_seconds() / 60, 2) if times else 0.0,
        "sent": len(who["sent"]),
        "received": len(who["received"]),
        "created_contracts": len(ether["contract"]),
        "uniq_received_from": len(set(who["received"])),
        "uniq_sent_to": len(set(who["sent"])),
        **spread("", "received", ether["received"]),
        **spread("", "sent", ether["sent"]),
        **spread("", "sent_contract", ether["contract"]),
        "total_txs": sum(map(len, ether.values())),
        "ether_sent": sum(ether["sent"]),
        "ether_received": sum(ether["received"]),
        "ether_sent_contracts": sum(ether["contract"]),
        "ether_balance": sum(ether["received"]) - sum(ether["sent"]) - sum(ether["contract"]),
        "erc20_txs": sum(map(len, moved.values())),
        "erc20_received": sum(tokens["received"]),
        "erc20_sent": sum(tokens["sent"]),
        "erc20_sent_contract": sum(tokens["own"]),
        "erc20_uniq_sent_to": different("sent", "to_address"),
        "erc20_uniq_received_from": different("received", "from_address"),
        "erc20_uniq_sent_contract": different("own", "to_address"),
        "erc20_uniq_received_contract": different("received", "token_address"),
        **spread("erc20_", "received", tokens["received"]),
        **spread("erc20_", "sent", tokens["sent"]),
        "erc20_tokens_sent": different("sent", "token_address"),
        "erc20_tokens_received": different("received", "token_address"),
    }


def test_it_computes_what_the_data_sets_program_computes(
    market: tuple[pl.DataFrame, pl.DataFrame], known: tuple[list[bytes], WalletHistory]
) -> None:
    wallets, history = known
    assert len(wallets) > 90
    raw = wallet_raw(history, wallets)
    assert raw["reason"].is_null().all()
    for row in raw.to_dicts():
        want = as_published(row["wallet"], *market)
        assert set(want) == set(COLUMNS)
        for name, value in want.items():
            # A half at the last place may be rounded either way.
            places = 0.0101 if name.endswith(("sent", "received", "_min")) and "min" in name else 1.01e-6
            assert row[name] == pytest.approx(value, rel=1e-9, abs=places), (row["wallet"].hex(), name)
    # Nothing is compared that is 0 everywhere but what this market does not have.
    assert {name for name in COLUMNS if not (raw[name] != 0).any()} <= {
        "min_sent_contract", "max_sent_contract", "avg_sent_contract", "ether_sent_contracts", "min_sent",
        "min_received",
    }  # fmt: skip


def test_a_wallet_alone_is_the_same_to_the_last_bit_as_among_many(known: tuple[list[bytes], WalletHistory]) -> None:
    wallets, history = known
    together = wallet_raw(history, wallets)
    features = derive({name: together[name].to_numpy() for name in SPEC.columns})
    for i, wallet in enumerate(wallets):
        mine = [frame.filter(pl.col("wallet") == wallet) for frame in (history.transactions, history.transfers)]
        alone = wallet_raw(WalletHistory(*(frame.sample(fraction=1, shuffle=True, seed=i) for frame in mine)), [wallet])
        assert alone.equals(together[i])
        made = derive({name: alone[name].to_numpy() for name in SPEC.columns})
        for name, values in made.items():
            assert values.tobytes() == features[name][i : i + 1].tobytes(), name
    backwards = wallet_raw(history, [*wallets[::-1], wallets[0]])
    assert backwards.equals(together.reverse())


# --- edges


def test_a_wallet_without_history_has_zeros_and_a_reason() -> None:
    history = Made().tx(ANN, ME, ETHER).history()
    raw = wallet_raw(history, [OTHER, ME, OTHER])
    assert raw["wallet"].to_list() == [OTHER, ME]
    assert raw["reason"].to_list() == [NO_HISTORY, None]
    assert raw.select(COLUMNS).row(0) == (0.0,) * len(COLUMNS)
    nothing = wallet_raw(WalletHistory(empty("transactions"), empty("transfers")), [ME])
    assert nothing["reason"].to_list() == [NO_HISTORY]
    assert wallet_raw(history, []).shape == (0, len(COLUMNS) + 2)


def test_only_what_was_there_at_the_time_counts() -> None:
    made = Made().tx(ANN, ME, ETHER).token(ANN, ME, ETHER).tx(ME, BOB, ETHER).token(ME, BOB, ETHER)
    assert made.raw(BEGIN + timedelta(minutes=20)) == Made().tx(ANN, ME, ETHER).token(ANN, ME, ETHER).raw()
    assert made.raw(BEGIN)["reason"] == NO_HISTORY
    assert made.raw(BEGIN + timedelta(minutes=40)) == made.raw()


def test_the_oldest_rows_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wallet_features, "OLDEST", 2)
    made = Made().tx(ANN, ME, 1 * ETHER).tx(ANN, ME, 2 * ETHER).tx(ANN, ME, 3 * ETHER)
    row = made.token(ANN, ME, 4 * ETHER).token(ANN, ME, 5 * ETHER).token(ANN, ME, 6 * ETHER).raw()
    assert (row["ether_received"], row["erc20_received"], row["lifetime_min"]) == (3.0, 9.0, 10.0)


def test_the_largest_amounts_there_are() -> None:
    made = Made()
    for _ in range(20):
        made.tx(ANN, ME, MAX).tx(ME, BOB, MAX).token(ANN, ME, MAX).token(ME, BOB, MAX)
    row = made.raw()
    assert (row["min_sent"], row["max_sent"], row["avg_sent"]) == (pytest.approx(MAX / 1e18),) * 3
    assert row["erc20_received"] == pytest.approx(20 * MAX / 1e18)
    assert row["ether_balance"] == 0
    features = derive({name: np.array([row[name]]) for name in SPEC.columns})
    assert all(math.isfinite(values[0]) for values in features.values())
