"""The mart `token_performance`, read: a token's hours, days and weeks.

Belongs here: questions to it. Does not belong here: how it is built (`dbt/`) and what must be there for that
(`dash_pipeline/storage/marts.py`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

_TEXT = ("volume_raw",)
_COLUMNS = (
    "chain", "token", "symbol", "period", "period_start", "period_end", "main_pool", "quote", "quote_symbol", "open",
    "high", "low", "close", "vwap", "volume_raw", "volume", "volume_quote", "trades", "unique_traders", "liquidity",
    "change",
)  # fmt: skip
_PERIOD = ", ".join(f"'{name}', p.{name}{'::text' if name in _TEXT else ''}" for name in _COLUMNS)


def ask_periods(
    chain: str, token: str, period: str, limit: int, after: datetime | None = None
) -> tuple[str, dict[str, Any]]:
    """The query, and its parameters, for a token's periods (1h, 24h or 7d) in which it was traded, newest first: rows
    of (period_start, document). `after`: the `period_start` of the row before the first. The session's time zone must
    be UTC."""
    query = (
        f"SELECT p.period_start, jsonb_build_object({_PERIOD}) FROM analytics.token_performance p"
        " WHERE p.token = %(token)s AND p.period = %(period)s AND p.chain = %(chain)s"
    )
    params: dict[str, Any] = {"token": token.lower(), "period": period, "chain": chain, "limit": limit}
    if after is not None:
        query, params["after"] = f"{query} AND p.period_start < %(after)s", after
    return f"{query} ORDER BY p.period_start DESC LIMIT %(limit)s", params
