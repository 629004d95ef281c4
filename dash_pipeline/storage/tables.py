"""The hot store's tables: one description that COPY, the asset graph, the checks and the data dictionary share.

Belongs here: each table of schema `chain`, and each other one whose old rows are archived, with its columns, PostgreSQL
types, meanings and natural key. Does not belong here: indexes and chunk settings (the migrations), other tables.

Frames that go into a table carry the same column names; `polars` dtypes follow from the PostgreSQL type:
bytea = Binary, text and jsonb = String, numeric = String of decimal digits (exact, may be negative),
int8 = Int64, int4 = Int32, float8 = Float64, bool = Boolean, timestamptz = Datetime("us", "UTC"); arrays are lists.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

DTYPES: dict[str, pl.DataType | type[pl.DataType]] = {
    "bytea": pl.Binary,
    "text": pl.String,
    "jsonb": pl.String,
    "numeric": pl.String,
    "int8": pl.Int64,
    "int4": pl.Int32,
    "float8": pl.Float64,
    "bool": pl.Boolean,
    "timestamptz": pl.Datetime("us", "UTC"),
    "bytea[]": pl.List(pl.Binary),
    "int4[]": pl.List(pl.Int32),
}


@dataclass(frozen=True)
class Column:
    """A column: PostgreSQL type, whether null is allowed, what it means."""

    type: str
    about: str
    null: bool = False


@dataclass(frozen=True)
class Table:
    """A table. `key`: the natural key that makes a replay do nothing; `time`: the column that says which day a row is
    of; `part_rows`: as many rows as are at most held in memory, about half a gigabyte."""

    name: str
    about: str
    columns: dict[str, Column]
    key: tuple[str, ...]
    hyper: bool = True
    namespace: str = "chain"
    time: str = "ts"
    part_rows: int = 500_000

    @property
    def relation(self) -> str:
        """The table's name in SQL."""
        return f"{self.namespace}.{self.name}"

    def schema(self) -> dict[str, pl.DataType | type[pl.DataType]]:
        """The polars schema of a frame that goes into this table."""
        return {name: DTYPES[column.type] for name, column in self.columns.items()}


def _n(type_: str, about: str) -> Column:
    return Column(type_, about, null=True)


_CHAIN = Column("text", "name of the chain, as in the registry")
_TS = Column("timestamptz", "the block's timestamp: the chain's own time")
_NUMBER = Column("int8", "block number (height)")
_BLOCK = Column("bytea", "hash of the block, 32 bytes")
_TX = Column("bytea", "hash of the transaction, 32 bytes")
_EXTRA = _n("jsonb", "fields of the message that this schema does not know, as they came")

BLOCKS = Table(
    "blocks",
    "Canonical blocks.",
    {
        "chain": _CHAIN,
        "ts": _TS,
        "block_number": _NUMBER,
        "block_hash": _BLOCK,
        "parent_hash": Column("bytea", "hash of the parent block"),
        "miner": _n("bytea", "address of the fee recipient"),
        "nonce": _n("bytea", "proof-of-work nonce, 8 bytes"),
        "sha3_uncles": _n("bytea", "hash of the uncles' list"),
        "logs_bloom": _n("bytea", "bloom filter of the logs, 256 bytes"),
        "transactions_root": _n("bytea", "root of the transaction trie"),
        "state_root": _n("bytea", "root of the state trie"),
        "receipts_root": _n("bytea", "root of the receipts trie"),
        "withdrawals_root": _n("bytea", "root of the withdrawals trie"),
        "extra_data": _n("bytea", "free bytes of the block's producer"),
        "difficulty": _n("numeric", "proof-of-work difficulty"),
        "total_difficulty": _n("numeric", "sum of the difficulties up to this block"),
        "size_bytes": _n("int8", "size of the block in bytes"),
        "gas_limit": _n("int8", "gas limit"),
        "gas_used": _n("int8", "gas used"),
        "base_fee_per_gas": _n("int8", "base fee per gas in wei"),
        "blob_gas_used": _n("int8", "blob gas used"),
        "excess_blob_gas": _n("int8", "excess blob gas"),
        "transaction_count": _n("int4", "transactions in the block, as its producer counted"),
        "withdrawals": _n("jsonb", "validator withdrawals as they came"),
        "extra": _EXTRA,
    },
    ("chain", "block_hash", "ts"),
)

TRANSACTIONS = Table(
    "transactions",
    "Transactions of canonical blocks, with their receipts.",
    {
        "chain": _CHAIN,
        "ts": _TS,
        "block_number": _NUMBER,
        "block_hash": _BLOCK,
        "tx_hash": _TX,
        "tx_index": Column("int4", "position in the block"),
        "nonce": _n("int8", "the sender's transaction count before this one"),
        "from_address": Column("bytea", "sender, 20 bytes"),
        "to_address": _n("bytea", "receiver, 20 bytes; null when a contract is created"),
        "value": Column("numeric", "wei moved, exact"),
        "value_f": Column("float8", "the same for analytics"),
        "gas": _n("int8", "gas limit"),
        "gas_price": _n("int8", "wei per gas"),
        "max_fee_per_gas": _n("int8", "EIP-1559 fee cap, wei"),
        "max_priority_fee_per_gas": _n("int8", "EIP-1559 tip cap, wei"),
        "max_fee_per_blob_gas": _n("int8", "EIP-4844 fee cap, wei"),
        "transaction_type": _n("int4", "EIP-2718 type"),
        "input": _n("bytea", "call data"),
        "blob_versioned_hashes": _n("jsonb", "EIP-4844 blob hashes as they came"),
        "receipt_status": _n("int4", "1 success, 0 reverted; null before Byzantium"),
        "receipt_gas_used": _n("int8", "gas used by this transaction"),
        "receipt_cumulative_gas_used": _n("int8", "gas used in the block up to this transaction"),
        "receipt_effective_gas_price": _n("int8", "wei per gas paid"),
        "receipt_contract_address": _n("bytea", "address of the created contract"),
        "receipt_root": _n("bytea", "state root, before Byzantium"),
        "receipt_extra": _n("jsonb", "roll-up and blob fields of the receipt (l1 fee, blob gas)"),
        "extra": _EXTRA,
    },
    ("chain", "block_hash", "tx_hash", "ts"),
)

LOGS = Table(
    "logs",
    "Event logs of canonical blocks, undecoded.",
    {
        "chain": _CHAIN,
        "ts": _TS,
        "block_number": _NUMBER,
        "block_hash": _BLOCK,
        "tx_hash": _TX,
        "tx_index": _n("int4", "position of the transaction in the block"),
        "log_index": Column("int4", "position of the log in the block"),
        "address": Column("bytea", "contract that emitted the log, 20 bytes"),
        "topic0": _n("bytea", "hash of the event's signature, 32 bytes"),
        "topic1": _n("bytea", "first indexed argument"),
        "topic2": _n("bytea", "second indexed argument"),
        "topic3": _n("bytea", "third indexed argument"),
        "data": Column("bytea", "arguments that are not indexed"),
        "extra": _EXTRA,
    },
    ("chain", "block_hash", "log_index", "ts"),
)

TOKEN_TRANSFERS = Table(
    "token_transfers",
    "ERC-20 and ERC-721 transfers of canonical blocks, as the exporter found them.",
    {
        "chain": _CHAIN,
        "ts": _TS,
        "block_number": _NUMBER,
        "block_hash": _BLOCK,
        "tx_hash": _TX,
        "log_index": Column("int4", "position of the Transfer log in the block"),
        "token_address": Column("bytea", "token contract, 20 bytes"),
        "from_address": Column("bytea", "sender, 20 bytes"),
        "to_address": Column("bytea", "receiver, 20 bytes"),
        "value": Column("numeric", "amount in the token's smallest unit (ERC-721: the token id), exact"),
        "value_f": Column("float8", "the same for analytics"),
        "extra": _EXTRA,
    },
    ("chain", "block_hash", "log_index", "ts"),
)

POOL_EVENTS = Table(
    "pool_events",
    "Uniswap V2 and V3 events and ERC-20 transfers decoded from logs. Amounts are changes of the pool: "
    "positive came in, negative went out.",
    {
        "chain": _CHAIN,
        "ts": _TS,
        "block_number": _NUMBER,
        "block_hash": _BLOCK,
        "tx_hash": _TX,
        "log_index": Column("int4", "position of the log in the block"),
        "protocol": Column("text", "uniswap_v2, uniswap_v3 or erc20"),
        "event": Column("text", "swap, sync, mint, burn, pair_created, initialize, pool_created, transfer"),
        "pool": Column("bytea", "the pool, 20 bytes (transfer: the token contract, which a V2 pool also is)"),
        "sender": _n("bytea", "who called (transfer: from; pair_created, pool_created: the factory)"),
        "recipient": _n("bytea", "who received (transfer, burn: to; V3 mint and burn: the position's owner)"),
        "token0": _n("bytea", "pair_created, pool_created: first token"),
        "token1": _n("bytea", "pair_created, pool_created: second token"),
        "amount0": _n("numeric", "change of the pool's token0, exact (transfer: the amount)"),
        "amount1": _n("numeric", "change of the pool's token1, exact"),
        "amount0_f": _n("float8", "amount0 for analytics"),
        "amount1_f": _n("float8", "amount1 for analytics"),
        "amount0_out": _n("numeric", "V2 swap: token0 paid out, exact; what came in is amount0 + amount0_out"),
        "amount1_out": _n("numeric", "V2 swap: token1 paid out, exact"),
        "reserve0": _n("numeric", "sync: reserve of token0 after the event, exact"),
        "reserve1": _n("numeric", "sync: reserve of token1 after the event, exact"),
        "reserve0_f": _n("float8", "reserve0 for analytics"),
        "reserve1_f": _n("float8", "reserve1 for analytics"),
        "liquidity": _n("numeric", "V3: liquidity in range (swap) or of the position (mint +, burn -)"),
        "sqrt_price_x96": _n("numeric", "V3: square root of the price, Q64.96"),
        "tick": _n("int4", "V3: tick after the event"),
        "tick_lower": _n("int4", "V3: lower tick of the position"),
        "tick_upper": _n("int4", "V3: upper tick of the position"),
        "fee": _n("int4", "V3: fee in hundredths of a basis point"),
        "tick_spacing": _n("int4", "V3: tick spacing"),
    },
    ("chain", "block_hash", "log_index", "ts"),
)

TRACES = Table(
    "traces",
    "Call traces of canonical blocks.",
    {
        "chain": _CHAIN,
        "ts": _TS,
        "block_number": _NUMBER,
        "block_hash": _BLOCK,
        "trace_id": Column("text", "the exporter's id: type, transaction or block, address in the call tree"),
        "tx_hash": _n("bytea", "hash of the transaction; null for rewards"),
        "tx_index": _n("int4", "position of the transaction in the block"),
        "trace_index": _n("int4", "position of the trace in the block"),
        "from_address": _n("bytea", "caller"),
        "to_address": _n("bytea", "callee, or the created contract"),
        "value": _n("numeric", "wei moved, exact"),
        "value_f": _n("float8", "the same for analytics"),
        "input": _n("bytea", "call data"),
        "output": _n("bytea", "returned data"),
        "trace_type": _n("text", "call, create, suicide, reward, genesis or daofork"),
        "call_type": _n("text", "call, delegatecall, staticcall or callcode"),
        "reward_type": _n("text", "block or uncle"),
        "gas": _n("int8", "gas given"),
        "gas_used": _n("int8", "gas used"),
        "subtraces": _n("int4", "calls made directly below"),
        "trace_address": _n("text", "path in the call tree, as a JSON array"),
        "error": _n("text", "why the call failed"),
        "status": _n("int4", "1 success, 0 failed"),
        "extra": _EXTRA,
    },
    ("chain", "block_hash", "trace_id", "ts"),
)

CONTRACTS = Table(
    "contracts",
    "Contracts created in canonical blocks.",
    {
        "chain": _CHAIN,
        "ts": _TS,
        "block_number": _NUMBER,
        "block_hash": _BLOCK,
        "address": Column("bytea", "the contract, 20 bytes"),
        "bytecode": _n("bytea", "deployed code"),
        "function_sighashes": _n("jsonb", "four-byte selectors found in the code"),
        "is_erc20": _n("bool", "looks like an ERC-20 token"),
        "is_erc721": _n("bool", "looks like an ERC-721 token"),
        "extra": _EXTRA,
    },
    ("chain", "address", "block_hash"),
    hyper=False,
)

TOKENS = Table(
    "tokens",
    "Tokens, as their contracts describe themselves.",
    {
        "chain": _CHAIN,
        "ts": _TS,
        "block_number": _NUMBER,
        "block_hash": _BLOCK,
        "address": Column("bytea", "the token's contract, 20 bytes"),
        "symbol": _n("text", "symbol; anyone may claim any"),
        "name": _n("text", "name; anyone may claim any"),
        "decimals": _n("int4", "digits behind the point of one whole token"),
        "total_supply": _n("numeric", "supply in the smallest unit when it was read"),
        "extra": _EXTRA,
    },
    ("chain", "address", "block_hash"),
    hyper=False,
)

POOLS = Table(
    "pools",
    "Pools seen being created.",
    {
        "chain": _CHAIN,
        "ts": _TS,
        "block_number": _NUMBER,
        "block_hash": _BLOCK,
        "tx_hash": _TX,
        "address": Column("bytea", "the pool, 20 bytes"),
        "protocol": Column("text", "uniswap_v2 or uniswap_v3"),
        "factory": Column("bytea", "factory that created it, 20 bytes"),
        "token0": Column("bytea", "first token, 20 bytes"),
        "token1": Column("bytea", "second token, 20 bytes"),
        "fee": _n("int4", "V3: fee in hundredths of a basis point"),
    },
    ("chain", "address", "block_hash"),
    hyper=False,
)

TABLES: dict[str, Table] = {
    table.name: table
    for table in (BLOCKS, TRANSACTIONS, LOGS, TOKEN_TRANSFERS, POOL_EVENTS, TRACES, CONTRACTS, TOKENS, POOLS)
}

ANOMALIES = Table(
    "anomalies",
    "What detectors found in pools.",
    {
        "id": Column("bytea", "hash of chain, kind, severity, pool, block and transaction"),
        "chain": _CHAIN,
        "ts": _TS,
        "block_number": _NUMBER,
        "block_hash": _BLOCK,
        "tx_hash": _TX,
        "log_indexes": Column("int4[]", "positions in the block of the logs it rests on"),
        "pool": Column("bytea", "the pool, 20 bytes"),
        "token": Column("bytea", "the token that is traded there, 20 bytes"),
        "tokens": Column("bytea[]", "both tokens of the pool"),
        "wallets": Column("bytea[]", "who is behind it"),
        "kind": Column("text", "the detector's name for it"),
        "severity": Column("text", "low, medium or high"),
        "score": Column("float8", "how far beyond the bar"),
        "evidence": Column("jsonb", "the numbers it was decided on"),
        "detected_at": Column("timestamptz", "when it was found (wall clock)"),
        "run_id": _n("text", "the Dagster run that found it"),
        "retracted_at": _n("timestamptz", "when it was taken back: its events are not on the chain any more"),
        "revision": Column("int4", "counts changes"),
        "published_revision": Column("int4", "the newest one that is on topic dash.anomalies"),
    },
    # One that was taken back, archived and found again is there twice, once for each time that it was found.
    ("id", "detected_at"),
    hyper=False,
    namespace="intel",
)

PREDICTIONS = Table(
    "predictions",
    "What the champions said about the pools and wallets of an anomaly.",
    {
        "anomaly_id": Column("bytea", "the anomaly"),
        "model": Column("text", "pool_risk, liquidity_outlook or wallet_risk"),
        "subject": Column("bytea", "the pool or wallet, 20 bytes"),
        "subject_kind": Column("text", "pool or wallet"),
        "chain": _CHAIN,
        "as_of": Column("timestamptz", "the anomaly's time: nothing later was looked at"),
        "version": Column("text", "the model's version; none where there was no champion"),
        "score": _n("float8", "calibrated probability; null where reason says why there is none"),
        "reason": _n("text", "why there is no score, or what it was made without"),
        "features": Column("jsonb", "raw columns it was made from"),
        "contributions": Column("jsonb", "feature -> SHAP value in log-odds"),
        "run_id": _n("text", "the Dagster run that made it"),
        "predicted_at": Column("timestamptz", "when it was made (wall clock)"),
    },
    ("anomaly_id", "model", "subject", "predicted_at"),
    hyper=False,
    namespace="intel",
    time="as_of",
)

DEAD_LETTERS = Table(
    "dead_letters",
    "Messages that were refused, with the reason.",
    {
        "topic": Column("text", "Kafka topic"),
        "partition": Column("int4", "partition of the topic"),
        "offset": Column("int8", "offset of the message"),
        "reason": Column("text", "why it was refused"),
        "payload": _n("bytea", "first 64 KiB of the message"),
        "payload_bytes": Column("int8", "size of the message in bytes"),
        "payload_sha256": _n("bytea", "SHA-256 of the whole message"),
        "record_ts": _n("timestamptz", "when Kafka took the message"),
        "run_id": _n("text", "the Dagster run that refused it"),
        "seen_at": Column("timestamptz", "when it was refused"),
        "chain": Column("text", "the topic's name up to the first dot"),
    },
    # A message that is refused again, once its letter is archived, is another letter; so is one of a topic made anew.
    ("topic", "partition", "offset", "seen_at"),
    hyper=False,
    namespace="ops",
    time="seen_at",
    part_rows=5_000,
)

#: Every table that has a history, hot and archived.
HISTORIES: dict[str, Table] = TABLES | {table.name: table for table in (ANOMALIES, PREDICTIONS, DEAD_LETTERS)}
