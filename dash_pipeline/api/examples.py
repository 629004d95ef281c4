"""Examples of answers, for the OpenAPI document and the page made of it. A test holds each against its struct.

Belongs here: values. Does not belong here: what they mean (`answers.py`).
"""

from __future__ import annotations

from typing import Any

POOL = "0x2a079a4d2bce97aca88b4862471be07b0dad1994"
CURSOR = "b64Zk1m3xFqk9pJQks0ABc0AAQ"
_QUOTE = "0xe7f1725e7734ce288f8367e1bb143e90bb3f0512"
_WALLET = "0x9965507d1a55bcc2695c58ba16fb37d819b0a4dc"
_TOKEN = "0xbbbbbb2d4d765c245e4172213753eeb4b4d6856a"
_HASH = "0x5c504ed432cb51138bcf09aa5e8a410dd4a1e204ef84bfed1be16dfba1b22060"

TOKEN: dict[str, Any] = {
    "chain": "ethereum", "address": _TOKEN, "as_of": "2024-06-01T03:20:00Z", "pools": 1, "trades_1h": 12,
    "trades_24h": 310, "trades_7d": 310, "symbol": "PEPX", "name": "Pepe X", "decimals": 18,
    "total_supply": "1000000000000000000000000000", "price": 0.0000021, "quote": _QUOTE, "quote_symbol": "WETH",
    "liquidity": 84.2, "main_pool": POOL, "protocol": "uniswap_v2", "last_trade": "2024-06-01T03:19:48Z",
    "last_transfer": "2024-06-01T03:19:48Z", "change_1h": -0.02, "change_24h": 0.31, "change_7d": 0.31,
    "volume_1h": 1200000.0, "volume_24h": 81000000.0, "volume_7d": 81000000.0, "volume_quote_1h": 2.6,
    "volume_quote_24h": 164.0, "volume_quote_7d": 164.0, "liquidity_change_1h": 0.0, "liquidity_change_24h": 0.1,
    "liquidity_change_7d": 0.1,
}  # fmt: skip

PERIOD: dict[str, Any] = {
    "chain": "ethereum", "token": _TOKEN, "period": "1h", "period_start": "2024-06-01T02:00:00Z",
    "period_end": "2024-06-01T03:00:00Z", "trades": 31, "volume_raw": "8100000000000000000000000", "symbol": "PEPX",
    "main_pool": POOL, "quote": _QUOTE, "quote_symbol": "WETH", "open": 0.0000019, "high": 0.0000022,
    "low": 0.0000019, "close": 0.0000021, "vwap": 0.000002, "volume": 8100000.0, "volume_quote": 16.4,
    "unique_traders": 12, "liquidity": 84.2, "change": 0.1,
}  # fmt: skip

TRANSACTION: dict[str, Any] = {
    "chain": "ethereum", "ts": "2024-06-01T01:04:36Z", "block_number": 323, "block_hash": _HASH, "tx_hash": _HASH,
    "tx_index": 0, "from_address": _WALLET, "value": "0", "to_address": POOL, "receipt_status": 1,
    "receipt_gas_used": 164021, "receipt_contract_address": None, "method": "0x02751cec",
    "token_transfers": [
        {"token_address": _QUOTE, "from_address": POOL, "to_address": _WALLET, "value": "40210000000000000000",
         "log_index": 3},
    ],
}  # fmt: skip

ACTIVITY: dict[str, Any] = {
    "chain": "ethereum",
    "wallet": _WALLET,
    "days": [
        {"day": "2024-06-01", "tx_sent": 5, "tx_received": 0, "tx_failed": 0, "value_out": "0",
         "value_in": "40210000000000000000", "fee": "8201050000000000", "transfers_out": 2, "transfers_in": 3,
         "tokens": 2, "swaps": 1, "first_seen": "2024-06-01T00:04:36Z", "last_seen": "2024-06-01T01:04:36Z"},
    ],
    "transactions": [TRANSACTION],
}  # fmt: skip

FOUND: dict[str, Any] = {
    "tokens": [TOKEN],
    "wallets": [{"chain": "ethereum", "wallet": _WALLET, "last_seen": "2024-06-01T01:04:36Z"}],
    "transactions": [TRANSACTION],
}

_SAID: dict[str, Any] = {
    "model": "pool_risk", "version": "20261124T101500-3f2a", "subject": POOL, "subject_kind": "pool",
    "contributions": [["liquidity_out_share", 2.31], ["maker_share", 1.02]],
    "predicted_at": "2024-06-01T01:04:36.412000Z", "score": 0.97, "reason": None,
}  # fmt: skip

ALERT: dict[str, Any] = {
    "id": "8f14e45fceea167a5a36dedd4bea2543", "chain": "ethereum", "pool": POOL, "token": _TOKEN,
    "kind": "reserve_drain", "severity": "high", "ts": "2024-06-01T01:04:36Z", "block_number": 323,
    "wallets": [_WALLET], "evidence": {"drained": 0.94, "sellers": 1}, "predictions": [_SAID],
    "raised_at": "2024-06-01T01:04:36.398000Z", "retracted": False, "revision": 2, "tx_hash": _HASH,
    "retracted_at": None,
}  # fmt: skip

PREDICTIONS: dict[str, Any] = {
    "items": [{"alert": ALERT["id"], "chain": "ethereum", "as_of": "2024-06-01T01:04:36Z"} | _SAID],
    "next_cursor": CURSOR,
}

HEALTH: dict[str, Any] = {
    "status": "ok",
    "stores": {"database": "ok", "search": "ok", "kafka": "ok"},
    "chains": [
        {"chain": "ethereum", "newest_block": 20000000, "newest_block_ts": "2024-06-01T03:20:11Z", "behind_s": 9.4,
         "index_batches": 1, "index_behind_s": 0.4, "lag": 12, "committed_s": 0.1},
    ],
}  # fmt: skip
