"""Labelled rows of the local market: what the models train on where no labelled file of the real world is at hand.

Belongs here: a recorded market and what its generator says of it -> rows of the training schema. Does not belong here:
the market itself (`dash_pipeline/market.py`), what the columns are (`pool_features.py`).

    python -m dash_pipeline.models.market_labels pool_risk OUT.csv FOLDER...
    python -m dash_pipeline.models.market_labels wallet_risk OUT.csv FOLDER...
    python -m dash_pipeline.models.market_labels liquidity_outlook OUT.csv FOLDER...

A folder is what `python -m dash_pipeline.market record --folder FOLDER -- --seed N` leaves: logs and transactions as
ethereum-etl prints them, and `labels.json`. Rows are computed by the functions that compute them live.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import typer

from dash_pipeline.errors import DashError, run_script
from dash_pipeline.events import abi
from dash_pipeline.events.decode import decode
from dash_pipeline.feed.files import SUFFIXES, read_lines
from dash_pipeline.models import liquidity_outlook, wallet_features
from dash_pipeline.models.pool_features import COLUMNS, SCHEMAS, PoolHistory, pool_raw
from dash_pipeline.models.wallet_features import WalletHistory, wallet_raw

CHAIN = "anvil"
#: Of a pool that is nobody's fraud, rows are made at so many of its liquidity events, the first and last among them,
#: and at the end: a slow drain has dozens, and would be all that a model sees.
MOMENTS_PER_POOL = 5
MAX_MESSAGE_BYTES = 1 << 20
# What `labels.json` must say.
_POOL_KEYS, _LABEL_KEYS = ("kind", "token", "pair"), ("pool", "tx", "is_rug")


@dataclass(frozen=True)
class Market:
    """A recorded market: `labels` as its generator wrote them, the history of all its pools, its events and its
    transactions (columns of tables pool_events and transactions)."""

    name: str
    labels: dict[str, Any]
    history: PoolHistory
    events: pl.DataFrame
    transactions: pl.DataFrame

    @property
    def end(self) -> datetime:
        """The time of the last transaction: up to then the market is known."""
        last = self.transactions["ts"].max()
        assert isinstance(last, datetime)
        return last


def read_market(folder: Path) -> Market:
    """The market recorded in `folder`. Raises DashError naming the file that is missing or not as it should be."""
    try:
        labels = json.loads((folder / "labels.json").read_bytes())
        complete = all(key in pool for pool in labels["pools"] for key in _POOL_KEYS)
        complete &= all(key in label for label in labels["labels"] for key in _LABEL_KEYS)
        quote = bytes.fromhex(labels["weth"][2:])
    except OSError as error:
        raise DashError(f"{folder / 'labels.json'}: {error.strerror}: record a market into this folder") from None
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise DashError(f"{folder / 'labels.json'}: not a market's labels; record the market anew")
    events = abi.pool_events(_decoded(folder, "log"))
    transactions = _decoded(folder, "transaction")
    pools = abi.pools(events)
    everything = pl.concat(events)
    history = market_history(everything, pools, transactions, quote)
    return Market(folder.name, labels, history, everything, transactions)


def _decoded(folder: Path, type_: str) -> pl.DataFrame:
    file = next((file for suffix in SUFFIXES if (file := folder / f"{type_}{suffix}").exists()), None)
    if file is None:
        raise DashError(f"{folder}: no {type_}.jsonl(.gz, .zst): record a market into this folder")
    found = decode([line for _, line in read_lines(file)], type_, CHAIN, MAX_MESSAGE_BYTES)
    if found.rejects:
        position, reason = found.rejects[0]
        raise DashError(f"{file}: line {position + 1}: {reason}")
    return found.frame


def market_history(events: pl.DataFrame, pools: pl.DataFrame, transactions: pl.DataFrame, quote: bytes) -> PoolHistory:
    """The history of all pools of frames with the columns of tables pool_events, pools and transactions, as
    `storage.pool_history` reads it from the tables themselves."""
    first = pl.col("token1") == quote
    known = pools.join(transactions.select("block_hash", "tx_hash", "from_address"), ["block_hash", "tx_hash"], "left")
    listed = known.select(
        pl.col("address").alias("pool"),
        "protocol",
        pl.when(first).then("token0").otherwise("token1").alias("base"),
        pl.when(first).then("token1").otherwise("token0").alias("quote"),
        first.alias("base_first"),
        pl.col("from_address").alias("creator"),
        pl.lit(None, pl.Float64).alias("supply"),
        pl.lit(False).alias("cut"),
    )
    kinds = ["mint", "burn", "swap", "sync", "transfer"]
    own = events.filter(pl.col("pool").is_in(listed["pool"].to_list()) & pl.col("event").is_in(kinds))
    moved = events.filter((pl.col("event") == "transfer") & pl.col("pool").is_in(listed["base"].to_list()))
    transfers = moved.with_columns(pl.col("pool").alias("token"), pl.col("amount0_f").alias("amount_f"))
    tokens = pl.concat([pools["token0"], pools["token1"]]).unique().to_list()
    made = transactions.filter(pl.col("receipt_contract_address").is_in(tokens))
    creations = made.with_columns(
        pl.col("from_address").alias("wallet"), pl.col("receipt_contract_address").alias("token")
    )
    return PoolHistory(
        listed,
        own.select(*SCHEMAS["events"]),
        transfers.select(*SCHEMAS["transfers"]),
        creations.select(*SCHEMAS["creations"]),
    )


def pool_labels(market: Market, *, before: bool = False) -> pl.DataFrame:
    """Rows of pool_risk: `id` (pool, and transaction or `end`), `Label`, COLUMNS, `as_of`, `group` (the pool), `kind`.

    Of a rug pull: as of each of its transactions, with them, which is when an anomaly is seen; Label 1. Of any other
    pool: as of MOMENTS_PER_POOL of its mints and burns, and at the end; Label 0. With `before`, the transactions
    themselves do not count, as in the published data set.
    """
    # Where each transaction's events begin and end.
    spans = market.events.group_by("tx_hash").agg(
        pl.col("ts").first(),
        pl.col("block_number").first(),
        first=pl.col("log_index").min(),
        last=pl.col("log_index").max(),
    )
    places = {row[0]: row[1:] for row in spans.iter_rows()}
    pulled: dict[str, list[bytes]] = {}
    for label in market.labels["labels"]:
        if label["is_rug"]:
            pulled.setdefault(label["pool"].lower(), []).append(address(label["tx"]))
    frames = []
    for pool in market.labels["pools"]:
        own = market.history.of([address(pool["pair"])])
        rugs = pulled.get(pool["pair"].lower(), [])
        moments: list[bytes | None] = [*rugs] or [*_liquidity_transactions(market, address(pool["pair"])), None]
        for tx in moments:
            if tx is None:
                seen, as_of, moment = own, market.end, "end"
            else:
                as_of, block, first, last = places[tx]
                seen, moment = own.before(block, first if before else last + 1), tx.hex()[:16]
            row = pool_raw(seen).select(
                pl.lit(f"{market.name}:{pool['pair'].lower()}:{moment}").alias("id"),
                pl.lit(int(bool(rugs)), pl.Int8).alias("Label"),
                *COLUMNS,
                pl.lit(as_of).alias("as_of"),
                pl.lit(f"{market.name}:{pool['pair'].lower()}").alias("group"),
                pl.lit(pool["kind"]).alias("kind"),
                "reason",
            )
            frames.append(row.filter(pl.col("reason").is_null()).drop("reason"))
    return pl.concat(frames)


def wallet_labels(market: Market) -> pl.DataFrame:
    """Rows of wallet_risk: `Address` (market and wallet), `FLAG`, COLUMNS of `wallet_features`, `as_of`.

    Illicit is who sent a rug pull's transaction, as of his last one. Every other wallet that ever sent a transaction is
    not, as of one of its transactions: developers as of their last withdrawal, which is when an anomaly may ask about
    them, others at evenly spread places of their history.
    """
    sent = market.transactions.sort("block_number", "tx_index").select("from_address", "tx_hash", "ts")
    senders = dict(sent.select("tx_hash", "from_address").iter_rows())
    rugs = [address(label["tx"]) for label in market.labels["labels"] if label["is_rug"]]
    illicit = {senders[tx] for tx in rugs}
    withdrew = {address(label["tx"]) for label in market.labels["labels"]}
    history = wallet_history(market)
    frames = []
    for number, ((wallet,), own) in enumerate(sent.group_by("from_address", maintain_order=True)):
        decisive = own.filter(pl.col("tx_hash").is_in(rugs if wallet in illicit else list(withdrew)))
        # 0.618: the golden section spreads places evenly, whatever the number of wallets.
        place = int((number * 0.618) % 1 * own.height)
        as_of = decisive["ts"][-1] if decisive.height else own["ts"][place]
        row = wallet_raw(history, [wallet], as_of)
        frames.append(
            row.select(
                pl.lit(f"{market.name}:0x{wallet.hex()}").alias("Address"),
                pl.lit(int(wallet in illicit), pl.Int8).alias("FLAG"),
                *wallet_features.COLUMNS,
                pl.lit(as_of).alias("as_of"),
            )
        )
    return pl.concat(frames)


def wallet_history(market: Market) -> WalletHistory:
    """What `storage.wallet_history` would read of every wallet of a market."""
    moves = market.transactions.select(
        "ts", "block_number", "tx_index", pl.col("from_address").alias("sender"),
        pl.col("to_address").alias("recipient"), "value_f",
    )  # fmt: skip
    transfers = market.events.filter(pl.col("event") == "transfer").select(
        "ts", "block_number", "log_index", pl.col("pool").alias("token"), pl.lit(None, pl.String).alias("name"),
        "sender", "recipient", pl.col("amount0_f").alias("value_f"),
    )  # fmt: skip
    return WalletHistory(_of_each_side(moves, "transactions"), _of_each_side(transfers, "transfers"))


def _of_each_side(moves: pl.DataFrame, name: str) -> pl.DataFrame:
    sent = moves.with_columns(wallet="sender")
    received = moves.filter(pl.col("recipient") != pl.col("sender")).with_columns(wallet="recipient")
    return pl.concat([sent, received]).select(*wallet_features.SCHEMAS[name])


def address(text: str) -> bytes:
    """The bytes of an address or hash as text."""
    return bytes.fromhex(text[2:])


def _liquidity_transactions(market: Market, pool: bytes) -> list[bytes]:
    """Transactions of a pool's mints and burns, MOMENTS_PER_POOL at most, evenly chosen."""
    own = market.events.filter((pl.col("pool") == pool) & pl.col("event").is_in(["mint", "burn"]))
    found = own.sort("block_number", "log_index")["tx_hash"].unique(maintain_order=True).to_list()
    chosen = min(MOMENTS_PER_POOL, len(found))
    return [found[round(i * (len(found) - 1) / max(chosen - 1, 1))] for i in range(chosen)]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def main(model: str, out: Path, folders: list[Path], every_s: int = 300, before: bool = False) -> None:
    """Write the labelled rows of the markets in FOLDERS for MODEL to OUT, a csv.

    --every-s: seconds between rows of liquidity_outlook. --before: rows of pool_risk as of just before a transaction.
    """
    markets = map(read_market, folders)
    if model == "pool_risk":
        rows = pl.concat(pool_labels(market, before=before) for market in markets).select(
            "id", "Label", "group", *COLUMNS
        )
    elif model == "wallet_risk":
        rows = pl.concat(map(wallet_labels, markets)).drop("as_of")
    elif model == liquidity_outlook.SPEC.name:
        rows = pl.concat(
            liquidity_outlook.outlook_dataset(market.history, market.end, every_s, market.name) for market in markets
        )
    else:
        raise DashError(f"{model}: rows are made for pool_risk, wallet_risk and liquidity_outlook")
    out.parent.mkdir(parents=True, exist_ok=True)
    rows.fill_nan(None).write_csv(out)  # unknown is a blank cell
    print(f"{out}: {rows.height:,} rows")


if __name__ == "__main__":
    run_script(app)
