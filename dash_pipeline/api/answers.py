"""What answers look like: one struct for each kind, from which the OpenAPI document is made.

Belongs here: fields and what they mean. Does not belong here: where they come from (`stores.py`).

Addresses and hashes are `0x` and lower-case hex, exact amounts strings of digits in the smallest unit, times ISO 8601
in UTC. A field that is not known is null.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any

from msgspec import Meta, Struct

Address = Annotated[str, Meta(pattern="^0x[0-9a-f]{40}$")]
Hash = Annotated[str, Meta(pattern="^0x[0-9a-f]{64}$")]
Digits = Annotated[str, Meta(pattern="^-?[0-9]+$", description="exact, in the smallest unit")]
Cursor = Annotated[str | None, Meta(description="the parameter `cursor` of the next page; null on the last one")]


class Token(Struct):
    """A token over the chain's last hour, day and week; floats are for reading, in whole tokens of `quote`."""

    chain: str
    address: Address
    as_of: datetime
    pools: int
    trades_1h: int
    trades_24h: int
    trades_7d: int
    symbol: str | None = None
    name: str | None = None
    decimals: int | None = None
    total_supply: Digits | None = None
    price: float | None = None
    quote: Address | None = None
    quote_symbol: str | None = None
    liquidity: float | None = None
    main_pool: Address | None = None
    protocol: str | None = None
    last_trade: datetime | None = None
    last_transfer: datetime | None = None
    change_1h: float | None = None
    change_24h: float | None = None
    change_7d: float | None = None
    volume_1h: float | None = None
    volume_24h: float | None = None
    volume_7d: float | None = None
    volume_quote_1h: float | None = None
    volume_quote_24h: float | None = None
    volume_quote_7d: float | None = None
    liquidity_change_1h: float | None = None
    liquidity_change_24h: float | None = None
    liquidity_change_7d: float | None = None


class WalletDay(Struct):
    """What a wallet did on one day (UTC) of the chain's time."""

    day: date
    tx_sent: int
    tx_received: int
    tx_failed: int
    value_out: Digits
    value_in: Digits
    fee: Digits
    transfers_out: int
    transfers_in: int
    tokens: int
    swaps: int
    first_seen: datetime
    last_seen: datetime


class Transfer(Struct):
    """A token's transfer within a transaction."""

    token_address: Address
    from_address: Address
    to_address: Address
    value: Digits
    log_index: int


class Transaction(Struct):
    """A canonical transaction; `method` is the first four bytes of its input."""

    chain: str
    ts: datetime
    block_number: int
    block_hash: Hash
    tx_hash: Hash
    tx_index: int
    from_address: Address
    value: Digits
    to_address: Address | None = None
    receipt_status: int | None = None
    receipt_gas_used: int | None = None
    receipt_contract_address: Address | None = None
    method: str | None = None
    token_transfers: list[Transfer] = []


class Activity(Struct):
    """A wallet's last active days and its newest transactions."""

    chain: str
    wallet: Address
    days: list[WalletDay]
    transactions: list[Transaction]


class Wallet(Struct):
    """A wallet that was found, and when it was last seen."""

    chain: str
    wallet: Address
    last_seen: datetime


class Found(Struct):
    """What a text may stand for."""

    tokens: list[Token]
    wallets: list[Wallet]
    transactions: list[Transaction]


class Said(Struct):
    """What a model said of a pool or wallet; `score` is a probability, null where `reason` says why there is none.
    `contributions` are the five largest, in log-odds."""

    model: str
    version: str
    subject: Address
    subject_kind: str
    contributions: list[tuple[str, float]]
    predicted_at: datetime
    score: float | None = None
    reason: str | None = None


class Prediction(Said, kw_only=True):
    """What a model said when an alert was raised, as of the chain's time `as_of`."""

    alert: str
    chain: str
    as_of: datetime


class Alert(Struct):
    """An alert about a pool; `evidence` is what the detector measured."""

    id: Annotated[str, Meta(pattern="^[0-9a-f]+$")]
    chain: str
    pool: Address
    token: Address
    kind: str
    severity: str
    ts: datetime
    block_number: int
    wallets: list[Address]
    evidence: dict[str, Any]
    predictions: list[Said]
    raised_at: datetime
    retracted: bool
    revision: int
    tx_hash: Hash | None = None
    retracted_at: datetime | None = None


class Tokens(Struct):
    """A page of tokens."""

    items: list[Token]
    next_cursor: Cursor


class Transactions(Struct):
    """A page of transactions, the newest first."""

    items: list[Transaction]
    next_cursor: Cursor


class Alerts(Struct):
    """A page of alerts, those first that were raised last."""

    items: list[Alert]
    next_cursor: Cursor


class Predictions(Struct):
    """A page of predictions, the newest first."""

    items: list[Prediction]
    next_cursor: Cursor


class Period(Struct):
    """An hour, day or week in which a token was traded; prices and amounts that are floats are in whole tokens of
    `quote`."""

    chain: str
    token: Address
    period: str
    period_start: datetime
    period_end: datetime
    trades: int
    volume_raw: Digits | None = None
    symbol: str | None = None
    main_pool: Address | None = None
    quote: Address | None = None
    quote_symbol: str | None = None
    open: float | None = None
    high: float | None = None
    low: float | None = None
    close: float | None = None
    vwap: float | None = None
    volume: float | None = None
    volume_quote: float | None = None
    unique_traders: int | None = None
    liquidity: float | None = None
    change: float | None = None


class Periods(Struct):
    """A page of periods, the newest first."""

    items: list[Period]
    next_cursor: Cursor


class ChainHealth(Struct):
    """How far the platform is with a chain. `lag`: messages on Kafka that are not ingested, null if Kafka does not
    answer; `behind_s`: seconds from the newest block's time to now; `committed_s`: seconds since the last commit;
    `index_batches`, `index_behind_s`: commits that the indexes do not show yet, and the age of the oldest."""

    chain: str
    newest_block: int
    newest_block_ts: datetime
    behind_s: float
    index_batches: int
    index_behind_s: float
    lag: int | None = None
    committed_s: float | None = None


class Health(Struct):
    """`status` is `ok`, `degraded` (answers come, but something is wrong) or `unavailable` (answers fail, and the
    status of this one is 503). `stores`: `ok`, or what is wrong with it."""

    status: str
    stores: dict[str, str]
    chains: list[ChainHealth]


class Problem(Struct, omit_defaults=True):
    """An error, as RFC 9457 has it. `store`: which of the stores is away."""

    title: str
    status: int
    detail: str
    type: str = "about:blank"
    store: str | None = None
