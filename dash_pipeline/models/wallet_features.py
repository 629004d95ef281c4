"""Raw columns of model wallet_risk, computed from the platform's own rows: what the labelled file says of an account.

Belongs here: frames in, one row per wallet out; pure. Does not belong here: reading the frames
(`dash_pipeline/storage/wallet_history.py`), features made of the raw columns (`wallet_risk.py`).

Definitions follow the published data set "Ethereum fraud detection" (sfarrugia15/Ethereum_Fraud_Detection), with what
may surprise in it: failed transactions count, with their value; a token's amount is divided by 1e18 whatever its
decimals; the time "between" sent transactions is counted from the transaction before, whichever way that one went.
Columns that the set's program left at 0 for every account are not among them (`wallet_risk.py` names them).

A wallet's row does not depend on which other wallets are computed with it, to the last bit: sums are made in the order
of the chain, row by row within a wallet (`np.bincount`), never by a group-by whose partial sums depend on what else is
there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import polars as pl

from dash_pipeline.models.pool_features import Bools, Ints, codes, places, sums
from dash_pipeline.models.spec import Floats

#: In the order of the labelled file.
COLUMNS = (
    "avg_min_between_sent", "avg_min_between_received", "lifetime_min", "sent", "received", "created_contracts",
    "uniq_received_from", "uniq_sent_to", "min_received", "max_received", "avg_received", "min_sent", "max_sent",
    "avg_sent", "min_sent_contract", "max_sent_contract", "avg_sent_contract", "total_txs", "ether_sent",
    "ether_received", "ether_sent_contracts", "ether_balance", "erc20_txs", "erc20_received", "erc20_sent",
    "erc20_sent_contract", "erc20_uniq_sent_to", "erc20_uniq_received_from", "erc20_uniq_sent_contract",
    "erc20_uniq_received_contract", "erc20_min_received", "erc20_max_received", "erc20_avg_received", "erc20_min_sent",
    "erc20_max_sent", "erc20_avg_sent", "erc20_tokens_sent", "erc20_tokens_received",
)  # fmt: skip

#: The oldest transactions and the oldest transfers of a wallet that count: the data set's source gave no more of each.
OLDEST = 10_000

NO_HISTORY = "no history: neither transactions nor token transfers of this wallet are stored"

# The set has amounts to six places, times to two.
_AMOUNT_PLACES, _TIME_PLACES = 6, 2
_WEI, _MINUTE_US = 1e18, 60e6

_TS = pl.Datetime("us", "UTC")
SCHEMAS: dict[str, dict[str, pl.DataType | type[pl.DataType]]] = {
    "transactions": {
        "wallet": pl.Binary,
        "ts": _TS,
        "block_number": pl.Int64,
        "tx_index": pl.Int32,
        "sender": pl.Binary,
        "recipient": pl.Binary,
        "value_f": pl.Float64,
    },
    "transfers": {
        "wallet": pl.Binary,
        "ts": _TS,
        "block_number": pl.Int64,
        "log_index": pl.Int32,
        "token": pl.Binary,
        "name": pl.String,
        "sender": pl.Binary,
        "recipient": pl.Binary,
        "value_f": pl.Float64,
    },
}


@dataclass(frozen=True)
class WalletHistory:
    """What is known of some wallets; frames with the columns of SCHEMAS, rows in any order.

    Each row is a transaction or transfer as one wallet's: what went from one of the wallets to another is there twice.
    `transactions`: those that the wallet sent or received, and the one that created it, if it is a contract;
    `recipient` is null where a contract is created, `value_f` is wei. `transfers`: ERC-20 transfers that the wallet
    sent or received, `value_f` in the token's smallest unit, `name` as the token's contract says it, null if unknown.
    `unread`: wallets that are in no frame because part of their history is archived, and the archive was not to be
    read.
    """

    transactions: pl.DataFrame
    transfers: pl.DataFrame
    unread: frozenset[bytes] = frozenset()


def empty(frame: str) -> pl.DataFrame:
    """A frame of WalletHistory without rows."""
    return pl.DataFrame(schema=SCHEMAS[frame])


def wallet_raw(history: WalletHistory, wallets: Sequence[bytes], as_of: datetime | None = None) -> pl.DataFrame:
    """One row per distinct one of `wallets`, in their order: `wallet`, COLUMNS as Float64 (finite), `reason`.

    Only rows up to and with `as_of` count (None: all), and of those a wallet's OLDEST. `reason` is null where the row
    can be scored. A wallet without a history has zeros and NO_HISTORY, and must not be scored: accounts without a trace
    are all illicit in the data set, because of how they were found.
    """
    known = pl.Series("wallet", list(dict.fromkeys(wallets)), dtype=pl.Binary)
    moves = _Moves.of(history.transactions, known, as_of, "tx_index")
    transfers = _Moves.of(history.transfers, known, as_of, "log_index")
    columns = _ether(moves) | _tokens(transfers)
    lost = np.bincount(moves.wallet, minlength=len(known)) + np.bincount(transfers.wallet, minlength=len(known)) == 0
    reason = pl.select(pl.when(pl.Series(lost)).then(pl.lit(NO_HISTORY))).to_series()
    raw = {name: pl.Series(columns[name], dtype=pl.Float64) for name in COLUMNS}
    return pl.DataFrame({"wallet": known, **raw, "reason": reason})


@dataclass(frozen=True)
class _Moves:
    """Transactions or transfers as arrays, one element per row, in the order of wallet (its position), block and index.

    `ts` in microseconds; `value` in ether; `sent`, `received`: from the wallet, to it (both where it paid itself).
    """

    wallets: int
    frame: pl.DataFrame
    wallet: Ints
    ts: Ints
    value: Floats
    sent: Bools
    received: Bools

    @staticmethod
    def of(frame: pl.DataFrame, wallets: pl.Series, as_of: datetime | None, index: str) -> _Moves:
        """The rows of these wallets up to `as_of`, of each wallet the OLDEST."""
        if as_of is not None:
            frame = frame.filter(pl.col("ts") <= as_of)
        wallet = places(frame["wallet"], wallets)
        keys = (frame[index].to_numpy(), frame["block_number"].to_numpy(), frame["ts"].to_physical().to_numpy(), wallet)
        order = np.lexsort(keys)
        order = order[wallet[order] >= 0]
        wallet = wallet[order]
        first = np.searchsorted(wallet, wallet)
        oldest = np.arange(len(wallet)) - first < OLDEST
        order, wallet = order[oldest], wallet[oldest]
        frame = frame[order]
        sent = (frame["sender"] == frame["wallet"]).to_numpy()
        received = (frame["recipient"] == frame["wallet"]).fill_null(False).to_numpy()
        return _Moves(
            len(wallets), frame, wallet, frame["ts"].to_physical().to_numpy(), frame["value_f"].to_numpy() / _WEI,
            sent, received,
        )  # fmt: skip

    def count(self, which: Bools) -> Floats:
        """How many of these rows each wallet has."""
        return np.bincount(self.wallet[which], minlength=self.wallets).astype(np.float64)

    def sum(self, which: Bools, values: Floats) -> Floats:
        """The sum of `values` over these rows of each wallet, added up in their order; 0 without."""
        return sums(self.wallet[which], values[which], self.wallets)

    def distinct(self, which: Bools, values: pl.Series) -> Floats:
        """How many different ones of `values` these rows of each wallet have; null is one, too."""
        (numbers,) = codes(values)
        pairs = np.unique(self.wallet[which] * (int(numbers.max(initial=0)) + 1) + numbers[which], return_index=True)
        return np.bincount(self.wallet[which][pairs[1]], minlength=self.wallets).astype(np.float64)

    def amounts(self, which: Bools) -> tuple[Floats, Floats, Floats]:
        """The smallest, largest and mean amount of these rows of each wallet, to six places; 0 without."""
        wallet, value = self.wallet[which], self.value[which]
        low, high = np.full(self.wallets, np.inf), np.full(self.wallets, -np.inf)
        np.minimum.at(low, wallet, value)
        np.maximum.at(high, wallet, value)
        count = self.count(which)
        mean = self.sum(which, self.value) / np.maximum(count, 1)
        low, high, mean = (np.where(count > 0, x, 0.0).round(_AMOUNT_PLACES) for x in (low, high, mean))
        return low, high, mean

    def mean_minutes(self, which: Bools) -> Floats:
        """Minutes from the wallet's row before (0 for its first) to these rows of each wallet, their mean to two
        places; 0 where there are less than two."""
        count = self.count(which)
        mean = self.sum(which, self._gaps()) / np.maximum(count, 1) / _MINUTE_US
        return np.where(count > 1, mean.round(_TIME_PLACES), 0.0)

    def lifetime(self) -> Floats:
        """Minutes from each wallet's first row to its last, to two places."""
        everything = np.ones(len(self.wallet), np.bool_)
        return (self.sum(everything, self._gaps()) / _MINUTE_US).round(_TIME_PLACES)

    def _gaps(self) -> Floats:
        # Whole microseconds, whose sums are exact.
        new = np.diff(self.wallet, prepend=-1) != 0
        return np.where(new, 0, np.diff(self.ts, prepend=self.ts[:1])).astype(np.float64)


def _ether(moves: _Moves) -> dict[str, Floats]:
    """The columns made of transactions."""
    created = moves.frame["recipient"].is_null().to_numpy()
    columns = {
        "avg_min_between_sent": moves.mean_minutes(moves.sent),
        "avg_min_between_received": moves.mean_minutes(moves.received),
        "lifetime_min": moves.lifetime(),
        "sent": moves.count(moves.sent),
        "received": moves.count(moves.received),
        "created_contracts": moves.count(created),
        "uniq_received_from": moves.distinct(moves.received, moves.frame["sender"]),
        "uniq_sent_to": moves.distinct(moves.sent, moves.frame["recipient"]),
        "ether_sent": moves.sum(moves.sent, moves.value),
        "ether_received": moves.sum(moves.received, moves.value),
        "ether_sent_contracts": moves.sum(created, moves.value),
    }
    columns |= _min_max_avg("", "received", moves, moves.received)
    columns |= _min_max_avg("", "sent", moves, moves.sent)
    columns |= _min_max_avg("", "sent_contract", moves, created)
    columns["total_txs"] = columns["sent"] + columns["received"] + columns["created_contracts"]
    paid = columns["ether_sent"] + columns["ether_sent_contracts"]
    columns["ether_balance"] = columns["ether_received"] - paid
    return columns


def _tokens(transfers: _Moves) -> dict[str, Floats]:
    """The columns made of token transfers."""
    frame, sent, received = transfers.frame, transfers.sent, transfers.received
    own = (frame["token"] == frame["wallet"]).to_numpy()
    # No contract's name can be taken for a nameless contract's address: a stored text holds no NUL.
    address = pl.lit("\0") + pl.col("token").bin.encode("hex")
    names = frame.select(pl.coalesce("name", address).alias("name"))["name"]
    columns = {
        "erc20_txs": transfers.count(sent) + transfers.count(received) + transfers.count(own),
        "erc20_received": transfers.sum(received, transfers.value),
        "erc20_sent": transfers.sum(sent, transfers.value),
        "erc20_sent_contract": transfers.sum(own, transfers.value),
        "erc20_uniq_sent_to": transfers.distinct(sent, frame["recipient"]),
        "erc20_uniq_received_from": transfers.distinct(received, frame["sender"]),
        "erc20_uniq_sent_contract": transfers.distinct(own, frame["recipient"]),
        "erc20_uniq_received_contract": transfers.distinct(received, frame["token"]),
        "erc20_tokens_sent": transfers.distinct(sent, names),
        "erc20_tokens_received": transfers.distinct(received, names),
    }
    columns |= _min_max_avg("erc20_", "received", transfers, received)
    columns |= _min_max_avg("erc20_", "sent", transfers, sent)
    return columns


def _min_max_avg(prefix: str, suffix: str, moves: _Moves, which: Bools) -> dict[str, Floats]:
    names = (f"{prefix}{kind}_{suffix}" for kind in ("min", "max", "avg"))
    return dict(zip(names, moves.amounts(which), strict=True))
