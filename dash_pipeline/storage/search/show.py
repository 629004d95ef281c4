"""Documents as a person reads them in a terminal.

Belongs here: rich. Does not belong here: asking the index (`queries.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Column, Table

from dash_pipeline.storage.search.indexes import WINDOWS
from dash_pipeline.storage.search.queries import Document

# An address and a hash must fit on a line of 80 characters with something beside them.
_NARROW: dict[str, Any] = {"box": SIMPLE, "pad_edge": False, "padding": (0, 1, 0, 0), "collapse_padding": True}
_PER_CENT = frozenset({"change", "liquidity_change"})


def token_table(token: Document) -> Table:
    """One token: what it is, and its windows side by side."""
    title = f"{_label(token)}  {token['address']} on {token['chain']}, as of {token['as_of']}"
    table = Table("", *WINDOWS, title=title, title_justify="left", **_NARROW)
    quote = token.get("quote_symbol") or token.get("quote", "")
    for name in ("change", "volume", "volume_quote", "trades", "liquidity_change"):
        table.add_row(name.replace("_", " "), *(_number(token.get(f"{name}_{w}"), name) for w in WINDOWS))
    table.add_row("price", _number(token.get("price")), quote, "")
    table.add_row("liquidity", _number(token.get("liquidity")), quote, "")
    table.add_row("pools", str(token["pools"]), "", "")
    table.add_row("last trade", token.get("last_trade", "never"), "", "")
    return table


def tokens_table(tokens: Sequence[Document], window: str, by: str) -> Table:
    """Tokens in the order they were found."""
    table = Table("token", _whole("address"), "price", f"{by} {window}", f"trades {window}", **_NARROW)
    for token in tokens:
        rank, trades = token.get(f"{by}_{window}"), token[f"trades_{window}"]
        table.add_row(_label(token), token["address"], _number(token.get("price")), _number(rank, by), _number(trades))
    return table


def wallet_days_table(days: Sequence[Document]) -> Table:
    """A wallet's days; amounts in whole coins of 18 decimals, each pair is out and in."""
    table = Table(_whole("day"), "transactions", "coins", "token transfers", "swaps", "fees", **_NARROW)
    for day in days:
        table.add_row(
            day["day"],
            f"{day['tx_sent']:,} / {day['tx_received']:,}",
            f"{_number(day['value_out_f'] / 1e18)} / {_number(day['value_in_f'] / 1e18)}",
            f"{day['transfers_out']:,} / {day['transfers_in']:,}",
            _number(day["swaps"]),
            _number(day["fee_f"] / 1e18),
        )
    return table


def transactions_table(transactions: Sequence[Document]) -> Table:
    """Transactions, a line each."""
    table = Table("block", _whole("transaction"), "coins", **_NARROW)
    for tx in transactions:
        table.add_row(str(tx["block_number"]), tx["tx_hash"], _number(tx["value_f"] / 1e18))
    return table


def _whole(name: str) -> Column:
    """A column that is copied from: never cut."""
    return Column(name, no_wrap=True, min_width=10)


def _label(token: Document) -> str:
    """Its symbol; anyone may claim any, and any length."""
    return str(token.get("symbol") or "?")[:16]


def _number(value: Any, kind: str = "") -> str:
    if value is None:
        return ""
    if kind in _PER_CENT:
        return f"{value:+.2%}"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
