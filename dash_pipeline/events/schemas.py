"""The messages of `ethereum-etl` 2.4.2, and which field becomes which column.

Belongs here: one struct per message type, and the columns each fills. Does not belong here: the decoding (`decode.py`).
Source of the fields: ethereum-etl 2.4.2, `ethereumetl/jobs/exporters` and `ethereumetl/streaming/enrich.py`.

Messages carry no key; numbers that may pass 64 bits are bare JSON integers and are kept as raw text here. Fields with a
default are missing in messages of older versions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from dash_pipeline.storage.tables import (
    BLOCKS,
    CONTRACTS,
    LOGS,
    TOKEN_TRANSFERS,
    TOKENS,
    TRACES,
    TRANSACTIONS,
    Table,
)

Hash = Annotated[str, Meta(min_length=66, max_length=66)]
Address = Annotated[str, Meta(min_length=42, max_length=42)]
Int4 = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Int8 = Annotated[int, Meta(ge=0, le=2**63 - 1)]
# Seconds of the chain's clock, from 1970 to the year 2200: what a hypertable can hold without surprises.
Seconds = Annotated[int, Meta(ge=0, le=7_258_118_400)]

NOTHING = Raw(b"null")


class Block(Struct, tag_field="type", tag="block", gc=False):
    """A message of topic `<chain>.blocks`; times in seconds since 1970, gas and fees in units and wei."""

    number: Int8
    hash: Hash
    parent_hash: Hash
    timestamp: Seconds
    nonce: str | None = None
    sha3_uncles: Hash | None = None
    logs_bloom: str | None = None
    transactions_root: Hash | None = None
    state_root: Hash | None = None
    receipts_root: Hash | None = None
    miner: Address | None = None
    difficulty: Raw = NOTHING
    total_difficulty: Raw = NOTHING
    size: Int8 | None = None
    extra_data: str | None = None
    gas_limit: Int8 | None = None
    gas_used: Int8 | None = None
    transaction_count: Int4 | None = None
    base_fee_per_gas: Int8 | None = None
    withdrawals_root: Hash | None = None
    withdrawals: Raw = NOTHING
    blob_gas_used: Int8 | None = None
    excess_blob_gas: Int8 | None = None
    item_id: str | None = None
    item_timestamp: str | None = None


class Transaction(Struct, tag_field="type", tag="transaction", gc=False):
    """A message of topic `<chain>.transactions`, the fields of its receipt included; amounts in wei."""

    hash: Hash
    block_number: Int8
    block_hash: Hash
    transaction_index: Int4
    from_address: Address
    value: Raw
    to_address: Address | None = None
    block_timestamp: Seconds | None = None
    nonce: Int8 | None = None
    gas: Int8 | None = None
    gas_price: Int8 | None = None
    input: str | None = None
    max_fee_per_gas: Int8 | None = None
    max_priority_fee_per_gas: Int8 | None = None
    max_fee_per_blob_gas: Int8 | None = None
    transaction_type: Int4 | None = None
    blob_versioned_hashes: Raw = NOTHING
    receipt_cumulative_gas_used: Int8 | None = None
    receipt_gas_used: Int8 | None = None
    receipt_contract_address: Address | None = None
    receipt_root: str | None = None
    receipt_status: Int4 | None = None
    receipt_effective_gas_price: Int8 | None = None
    receipt_l1_fee: Raw = NOTHING
    receipt_l1_gas_used: Raw = NOTHING
    receipt_l1_gas_price: Raw = NOTHING
    receipt_l1_fee_scalar: Raw = NOTHING
    receipt_blob_gas_price: Raw = NOTHING
    receipt_blob_gas_used: Raw = NOTHING
    item_id: str | None = None
    item_timestamp: str | None = None


class Log(Struct, tag_field="type", tag="log", gc=False):
    """A message of topic `<chain>.logs`: topics and data as they are, undecoded."""

    log_index: Int4
    transaction_hash: Hash
    block_number: Int8
    block_hash: Hash
    address: Address
    topics: Annotated[list[Hash], Meta(max_length=4)]
    data: str
    transaction_index: Int4 | None = None
    block_timestamp: Seconds | None = None
    item_id: str | None = None
    item_timestamp: str | None = None


class TokenTransfer(Struct, tag_field="type", tag="token_transfer", gc=False):
    """A message of topic `<chain>.token_transfers`; `value` in the token's smallest unit, or an id."""

    token_address: Address
    from_address: Address
    to_address: Address
    value: Raw
    transaction_hash: Hash
    log_index: Int4
    block_number: Int8
    block_hash: Hash
    block_timestamp: Seconds | None = None
    item_id: str | None = None
    item_timestamp: str | None = None


class Trace(Struct, tag_field="type", tag="trace", gc=False):
    """A message of topic `<chain>.traces`: a call, creation, suicide or reward; `value` in wei."""

    trace_id: str
    block_number: Int8
    block_hash: Hash
    block_timestamp: Seconds | None = None
    transaction_hash: Hash | None = None
    transaction_index: Int4 | None = None
    trace_index: Int4 | None = None
    from_address: Address | None = None
    to_address: Address | None = None
    value: Raw = NOTHING
    input: str | None = None
    output: str | None = None
    trace_type: str | None = None
    call_type: str | None = None
    reward_type: str | None = None
    gas: Int8 | None = None
    gas_used: Int8 | None = None
    subtraces: Int4 | None = None
    trace_address: Raw = NOTHING
    error: str | None = None
    status: Int4 | None = None
    item_id: str | None = None
    item_timestamp: str | None = None


class Contract(Struct, tag_field="type", tag="contract", gc=False):
    """A message of topic `<chain>.contracts`: code that was created."""

    address: Address
    block_number: Int8
    block_hash: Hash
    block_timestamp: Seconds | None = None
    bytecode: str | None = None
    function_sighashes: Raw = NOTHING
    is_erc20: bool | None = None
    is_erc721: bool | None = None
    item_id: str | None = None
    item_timestamp: str | None = None


class Token(Struct, tag_field="type", tag="token", gc=False):
    """A message of topic `<chain>.tokens`: what a contract says of its token."""

    address: Address
    block_number: Int8
    block_hash: Hash
    block_timestamp: Seconds | None = None
    symbol: str | None = None
    name: str | None = None
    decimals: Int4 | None = None
    total_supply: Raw = NOTHING
    item_id: str | None = None
    item_timestamp: str | None = None


Kind = Literal["int", "time", "hex", "text", "bool", "uint256", "json"]


@dataclass(frozen=True)
class MessageType:
    """A message type: its struct (strict: unknown fields are an error), its table, and column -> (field, kind)."""

    name: str
    struct: type[Struct]
    strict: type[Struct]
    table: Table
    columns: dict[str, tuple[str, Kind]]
    fields: frozenset[str]


# Where the column's name is not the field's.
_RENAMED: dict[str, dict[str, str]] = {
    "block": {"block_number": "number", "block_hash": "hash", "ts": "timestamp", "size_bytes": "size"},
    "transaction": {"tx_hash": "hash", "tx_index": "transaction_index"},
    "log": {"tx_hash": "transaction_hash", "tx_index": "transaction_index"},
    "token_transfer": {"tx_hash": "transaction_hash"},
    "trace": {"tx_hash": "transaction_hash", "tx_index": "transaction_index"},
}
# Columns that the decoder fills from several fields, or from none.
_DERIVED = {"chain", "extra", "value_f", "receipt_extra", "topic0", "topic1", "topic2", "topic3"}
_KINDS: dict[str, Kind] = {
    "int8": "int",
    "int4": "int",
    "timestamptz": "time",
    "bytea": "hex",
    "text": "text",
    "bool": "bool",
    "numeric": "uint256",
    "jsonb": "json",
}


def _message_type(struct: type[Struct], table: Table) -> MessageType:
    name = str(struct.__struct_config__.tag)
    renamed = {"ts": "block_timestamp"} | _RENAMED.get(name, {})
    columns = {
        column: (renamed.get(column, column), _KINDS[spec.type])
        for column, spec in table.columns.items()
        if column not in _DERIVED
    }
    if name == "trace":
        columns["trace_address"] = ("trace_address", "json")
    strict = msgspec.defstruct(
        f"Strict{struct.__name__}", [], bases=(struct,), forbid_unknown_fields=True, tag=name, gc=False
    )
    fields = frozenset(struct.__struct_encode_fields__) | {"type"}
    return MessageType(name, struct, strict, table, columns, fields)


MESSAGE_TYPES: dict[str, MessageType] = {
    type_.name: type_
    for type_ in (
        _message_type(Block, BLOCKS),
        _message_type(Transaction, TRANSACTIONS),
        _message_type(Log, LOGS),
        _message_type(TokenTransfer, TOKEN_TRANSFERS),
        _message_type(Trace, TRACES),
        _message_type(Contract, CONTRACTS),
        _message_type(Token, TOKENS),
    )
}
