"""Messages of ethereum-etl -> frames; and everything that is not one, with its reason, never an exception."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest

from dash_pipeline.events.decode import MESSAGE, Decoded, decode
from dash_pipeline.events.schemas import MESSAGE_TYPES

MAX = 2**256 - 1
LIMIT = 1 << 20
H1, H2, H3 = ("0x" + c * 64 for c in "abc")
A1, A2 = "0x" + "Cd" * 20, "0x" + "ef" * 20
ITEM = {"item_id": "x_1", "item_timestamp": "2024-01-05T00:00:00Z"}

# As ethereum-etl 2.4.2 publishes them, every field it knows.
FULL: dict[str, dict[str, Any]] = {
    "block": {
        "type": "block", "number": 7, "hash": H1, "parent_hash": H2, "nonce": "0x0000000000000042", "sha3_uncles": H3,
        "logs_bloom": "0x" + "00" * 256, "transactions_root": H1, "state_root": H2, "receipts_root": H3, "miner": A1,
        "difficulty": 2**70, "total_difficulty": MAX, "size": 1000, "extra_data": "0x", "gas_limit": 30_000_000,
        "gas_used": 21_000, "timestamp": 1_704_412_800, "transaction_count": 1, "base_fee_per_gas": 7,
        "withdrawals_root": H1, "withdrawals": [{"index": 1, "amount": 2**65}], "blob_gas_used": 0,
        "excess_blob_gas": 1, **ITEM,
    },
    "transaction": {
        "type": "transaction", "hash": H3, "nonce": 5, "transaction_index": 2, "from_address": A1, "to_address": A2,
        "value": MAX, "gas": 21_000, "gas_price": 10**9, "input": "0xa9059cbb", "block_timestamp": 1_704_412_800,
        "block_number": 7, "block_hash": H1, "max_fee_per_gas": 10**10, "max_priority_fee_per_gas": 1,
        "transaction_type": 2, "max_fee_per_blob_gas": 3, "blob_versioned_hashes": [H1],
        "receipt_cumulative_gas_used": 30_000, "receipt_gas_used": 21_000, "receipt_contract_address": A1,
        "receipt_root": "0x", "receipt_status": 1, "receipt_effective_gas_price": 2, "receipt_l1_fee": 2**80,
        "receipt_l1_gas_used": 1, "receipt_l1_gas_price": 2, "receipt_l1_fee_scalar": 0.684,
        "receipt_blob_gas_price": 4, "receipt_blob_gas_used": 5, **ITEM,
    },
    "log": {
        "type": "log", "log_index": 3, "transaction_hash": H3, "transaction_index": 2, "address": A1,
        "data": "0x" + "00" * 31 + "05", "topics": [H1, H2, H3], "block_timestamp": 1_704_412_800, "block_number": 7,
        "block_hash": H1, **ITEM,
    },
    "token_transfer": {
        "type": "token_transfer", "token_address": A1, "from_address": A2, "to_address": A1, "value": 2**64,
        "transaction_hash": H3, "log_index": 3, "block_timestamp": 1_704_412_800, "block_number": 7, "block_hash": H1,
        **ITEM,
    },
    "trace": {
        "type": "trace", "transaction_index": 2, "from_address": A1, "to_address": A2, "value": 10**20,
        "input": "0x", "output": "0x01", "trace_type": "call", "call_type": "delegatecall", "reward_type": None,
        "gas": 1, "gas_used": 2, "subtraces": 0, "trace_address": [0, 1], "error": None, "status": 1,
        "transaction_hash": H3, "block_number": 7, "trace_id": f"call_{H3}_0_1", "trace_index": 4,
        "block_timestamp": 1_704_412_800, "block_hash": H1, **ITEM,
    },
    "contract": {
        "type": "contract", "address": A1, "bytecode": "0x6080", "function_sighashes": ["0xa9059cbb"],
        "is_erc20": True, "is_erc721": False, "block_number": 7, "block_timestamp": 1_704_412_800, "block_hash": H1,
        **ITEM,
    },
    "token": {
        "type": "token", "address": A1, "symbol": "WETH", "name": "Wrapped \u00c4ther", "decimals": 18,
        "total_supply": MAX, "block_number": 7, "block_timestamp": 1_704_412_800, "block_hash": H1, **ITEM,
    },
}  # fmt: skip
# What messages of older versions have at least.
NEEDED = {
    "block": {"type", "number", "hash", "parent_hash", "timestamp"},
    "transaction": {
        "type", "hash", "transaction_index", "from_address", "value", "block_timestamp", "block_number", "block_hash",
    },
    "log": {
        "type", "log_index", "transaction_hash", "address", "data", "topics", "block_timestamp", "block_number",
        "block_hash",
    },
    "token_transfer": {
        "type", "token_address", "from_address", "to_address", "value", "transaction_hash", "log_index",
        "block_timestamp", "block_number", "block_hash",
    },
    "trace": {"type", "trace_id", "block_timestamp", "block_number", "block_hash"},
    "contract": {"type", "address", "block_timestamp", "block_number", "block_hash"},
    "token": {"type", "address", "block_timestamp", "block_number", "block_hash"},
}  # fmt: skip
TYPES = list(FULL)


def message(type_: str = "token_transfer", **fields: Any) -> bytes:
    """A whole message, some fields replaced; `...` leaves one out."""
    return json.dumps({k: v for k, v in {**FULL[type_], **fields}.items() if v is not ...}).encode()


def raw(field: str, text: bytes, type_: str = "token_transfer") -> bytes:
    """A message with a field's value as these bytes."""
    return message(type_, **{field: "@@"}).replace(b'"@@"', text)


def take(*messages: bytes, type_: str = "token_transfer") -> Decoded:
    """Decode, and check what holds for any input."""
    decoded = decode(list(messages), type_, "anvil", LIMIT)
    table = MESSAGE_TYPES[type_].table
    assert decoded.frame.schema == pl.Schema(table.schema() | {MESSAGE: pl.UInt32})
    for name, column in table.columns.items():
        assert column.null or name == "ts" or not decoded.frame[name].null_count(), name
    places = decoded.frame[MESSAGE].to_list() + [position for position, _ in decoded.rejects]
    assert sorted(places) == list(range(len(messages))), "each message is a row or has a reason"
    assert all(reason for _, reason in decoded.rejects)
    return decoded


def row(decoded: Decoded) -> dict[str, Any]:
    assert decoded.rejects == []
    (one,) = decoded.frame.iter_rows(named=True)
    return one


def reason(*messages: bytes, type_: str = "token_transfer") -> str:
    """The reason why the last of the messages is refused, the others being good."""
    decoded = take(*messages, type_=type_)
    ((position, text),) = decoded.rejects
    assert position == len(messages) - 1
    return text


# --- good messages


@pytest.mark.parametrize("type_", TYPES)
def test_every_field_of_every_type_arrives(type_: str) -> None:
    full = FULL[type_]
    got = row(take(message(type_), type_=type_))
    filled = {name for name in got if got[name] is not None}
    absent = {"extra", "reward_type", "error", "topic3"}
    assert set(got) - filled <= absent
    for column, (field, kind) in MESSAGE_TYPES[type_].columns.items():
        value = full[field]
        if value is None:
            assert got[column] is None
        elif kind == "hex":
            assert got[column] == bytes.fromhex(value[2:])
        elif kind == "uint256":
            assert got[column] == str(value)
        elif kind == "json":
            assert json.loads(got[column]) == value
        elif kind == "time":
            assert got[column] == datetime(2024, 1, 5, tzinfo=UTC)
        else:
            assert got[column] == value


def test_what_is_made_from_several_fields() -> None:
    transaction = row(take(message("transaction"), type_="transaction"))
    assert transaction["value_f"] == pytest.approx(float(MAX))
    assert json.loads(transaction["receipt_extra"]) == {
        k: v
        for k, v in FULL["transaction"].items()
        if k.startswith("receipt_l1") or k.startswith("receipt_blob")
    }  # fmt: skip
    log = row(take(message("log"), type_="log"))
    assert [log[f"topic{i}"] for i in range(4)] == [bytes.fromhex(h[2:]) for h in (H1, H2, H3)] + [None]


@pytest.mark.parametrize("type_", TYPES)
def test_old_messages_lack_newer_fields(type_: str) -> None:
    old = {k: v for k, v in FULL[type_].items() if k in NEEDED[type_]}
    got = row(take(json.dumps(old).encode(), type_=type_))
    for column, spec in MESSAGE_TYPES[type_].table.columns.items():
        assert (got[column] is not None) or spec.null
    nulls = {k: (v if k in NEEDED[type_] else None) for k, v in FULL[type_].items()}
    assert row(take(json.dumps(nulls).encode(), type_=type_)) == got


@pytest.mark.parametrize("type_", TYPES)
def test_each_needed_field_is_needed(type_: str) -> None:
    for field in NEEDED[type_] - {"type", "block_timestamp"}:
        assert field in reason(message(type_), message(type_, **{field: ...}), type_=type_)
        assert field in reason(message(type_), message(type_, **{field: None}), type_=type_)


@pytest.mark.parametrize("type_", [t for t in TYPES if t != "block"])
def test_a_missing_timestamp_is_left_to_the_block(type_: str) -> None:
    """Only the exporter's stream has it."""
    for value in (..., None):
        assert row(take(message(type_, block_timestamp=value), type_=type_))["ts"] is None


@pytest.mark.parametrize("type_", TYPES)
def test_unknown_fields_are_kept(type_: str) -> None:
    decoded = take(message(type_), message(type_, newField=[1, {"a": None}], other="ü"), message(type_), type_=type_)
    assert decoded.rejects == []
    kept = decoded.frame["extra"].to_list()
    assert kept[0] is kept[2] is None
    assert json.loads(kept[1]) == {"newField": [1, {"a": None}], "other": "ü"}
    plain = decoded.frame.drop("extra", MESSAGE)
    assert plain.row(0) == plain.row(1) == plain.row(2)


@pytest.mark.parametrize("value", [0, 1, 2**63, 2**64, 10**76, 10**77, MAX - 1, MAX])
def test_values_of_any_size_are_exact(value: int) -> None:
    got = row(take(message(value=value)))
    assert got["value"] == str(value)
    assert got["value_f"] == float(value)


def test_no_messages() -> None:
    for type_ in TYPES:
        assert take(type_=type_).frame.height == 0


# --- bad messages: one among good ones, and the lane goes on


@pytest.mark.parametrize(
    "text",
    [b"", b" ", b"\n", b"hello", b"{", b"}", b"{}{", b"\x00", b"\xff\xfe", b'{"type": "token_transfer",}', b"nul",
     b"[" * 100_000, b'{"a":' * 50_000, message()[:-1], message() + b"}", message() + message(),
     message() + b"\n" + message(), message().decode().encode("utf-16"), b"\xef\xbb\xbf" + message()],
)  # fmt: skip
def test_what_is_not_json(text: bytes) -> None:
    assert take(message(), text, message()).frame[MESSAGE].to_list() == [0, 2]
    assert take(text).frame.height == 0


@pytest.mark.parametrize("text", [b"null", b"[]", b"5", b'"x"', b"true", b"{}", b"[{}]", b"1e400"])
def test_what_is_json_and_no_message(text: bytes) -> None:
    assert "not a valid token_transfer" in reason(message(), text)


def test_two_halves_in_two_messages_are_no_message() -> None:
    """The parser reads the whole batch at once, but no message reaches into the next."""
    whole = message()
    for parts in (
        [whole[:-1], b"}", whole + whole],
        [whole + b"\n" + whole, b""],
        [b"", whole + whole],
        [whole[:50], whole[50:], whole],
        [whole + whole[:50], whole[50:]],
    ):
        decoded = take(*parts)
        good = [i for i, part in enumerate(parts) if part == whole]
        assert decoded.frame[MESSAGE].to_list() == good


def test_white_space_around_a_message_is_none_of_it() -> None:
    assert take(b"\n" + message() + b"\r\n", message()).rejects == []


def test_the_type_must_be_the_topics() -> None:
    assert "Invalid value 'log'" in reason(message(), message(type="log"))
    assert "Invalid value 'uncle'" in reason(message(), message(type="uncle"))
    assert "type" in reason(message(), message(type=5))
    assert reason(message(), message("log"))
    # An exporter that leaves the type to the topic is understood.
    assert take(message(type=...)).rejects == []


@pytest.mark.parametrize(
    "value", [b"-1", b"-0", b"1.0", b"1e3", b'"5"', b"true", b"[1]", b'{"a":1}', str(2**256).encode(), b"9" * 5000,
              b'""']
)  # fmt: skip
def test_values_that_are_no_uint256(value: bytes) -> None:
    assert reason(message(), raw("value", value)) == "value is not an integer from 0 to 2^256-1"
    assert reason(message("block"), raw("difficulty", value, "block"), type_="block").startswith("difficulty is not")


@pytest.mark.parametrize("value", [b"01", b"+1", b"0x5", b"NaN", b"Infinity", b".5", b"1_000", b"-"])
def test_values_that_are_not_even_json(value: bytes) -> None:
    assert reason(message(), raw("value", value)).startswith("not JSON")


@pytest.mark.parametrize("value", [1.0, 1.5, -1, 2**31, 2**63, "5", True, [1], {"a": 1}, 10**30])
def test_numbers_that_are_no_index(value: Any) -> None:
    assert "log_index" in reason(message(), message(log_index=value))


@pytest.mark.parametrize("value", [-1, 1.5, 2**40, 2**62, "2024-01-05T00:00:00Z"])
def test_timestamps_that_are_none(value: Any) -> None:
    assert "timestamp" in reason(message(), message(block_timestamp=value))


@pytest.mark.parametrize(
    "value",
    ["", "0x", "ab" * 33, "0x" + "a" * 63, "0x" + "a" * 65, "0x" + "g" * 64, "0X" + "a" * 64, "0x" + "é" * 64,
     "0x" + "a" * 63 + "\0", " 0x" + "a" * 63, "0x0x" + "a" * 62, 5, [H1]],
)  # fmt: skip
def test_hashes_that_are_none(value: Any) -> None:
    assert "transaction_hash" in reason(message(), message(transaction_hash=value))


@pytest.mark.parametrize("value", ["abc", "0xabc", "0xzz", "ab", "0x\0\0", 5, None])
def test_data_that_is_no_hex(value: Any) -> None:
    assert "data" in reason(message("log"), message("log", data=value), type_="log")


@pytest.mark.parametrize("value", [[H1] * 5, ["0x"], [None], [5], "0x", None, H1, ["0x" + "g" * 64]])
def test_topics_that_are_none(value: Any) -> None:
    assert "topics" in reason(message("log"), message("log", topics=value), type_="log")


def test_a_message_too_large_is_not_looked_into() -> None:
    large = message("log", data="0x" + "ab" * LIMIT)
    assert reason(message("log"), large, type_="log") == f"message of {len(large)} bytes, at most {LIMIT} are taken"
    assert f"message of {10 << 20} bytes" in reason(message("log"), b"x" * (10 << 20), type_="log")


def test_of_a_key_given_twice_the_last_counts() -> None:
    twice = message().replace(b'"value"', b'"value": 1, "value"')
    assert row(take(twice))["value"] == str(2**64)


def test_characters_that_postgresql_cannot_hold() -> None:
    got = row(take(message("token", symbol="A\0B", name="\0", note="\0x"), type_="token"))
    assert (got["symbol"], got["name"]) == ("AB", "")
    assert json.loads(got["extra"]) == {"note": "x"}


@pytest.mark.parametrize(
    "text", ["\\u0000", "\\\\u0000", "\\\\\\u0000\\u0000", '\\"\\u0000\\n', "\\u0000u0000", "\\\\"]
)
def test_only_the_escape_of_nul_is_taken_out_of_json(text: str) -> None:
    value = b'["' + text.encode() + b'"]'
    want = [json.loads(value)[0].replace("\0", "")]
    assert json.loads(row(take(raw("withdrawals", value, "block"), type_="block"))["withdrawals"]) == want
    assert json.loads(row(take(raw("new", value)))["extra"]) == {"new": want}


@pytest.mark.parametrize(
    "text", [b'"\\ud800"', b'"\\udc00\\ud800"', b'"\xff"', b'"\xed\xa0\x80"', b'"a\nb"', b'"\x00"']
)
def test_text_that_is_no_unicode(text: bytes) -> None:
    assert reason(message("token"), raw("symbol", text, "token"), type_="token")
    assert reason(message("token"), raw("new", text, "token"), type_="token")
    assert reason(message("block"), raw("withdrawals", text, "block"), type_="block")


@pytest.mark.parametrize("field", ["new", "value", "item_id"])
def test_json_that_is_too_deep(field: str) -> None:
    deep = raw(field, b"[" * 100_000 + b"]" * 100_000)
    assert "deep" in reason(message(), deep) or "Expected" in reason(message(), deep)
    assert take(deep).frame.height == 0


def test_random_damage_is_never_an_exception() -> None:
    rng = random.Random(1)
    for type_ in TYPES:
        for _ in range(40):
            batch = []
            for _ in range(rng.randrange(1, 6)):
                text = bytearray(message(type_))
                for _ in range(rng.choice([0, 0, 1, 1, 3])):
                    at = rng.randrange(len(text))
                    match rng.randrange(4):
                        case 0:
                            text[at] = rng.randrange(256)
                        case 1:
                            del text[at : at + rng.randrange(1, 9)]
                        case 2:
                            text[at:at] = rng.choice([b"-", b'"', b"{", b"}", b"\\u0000", b"\xff", b"0", b"null"])
                        case 3:
                            other = rng.randrange(len(text))
                            text[at : at + 5], text[other : other + 5] = text[other : other + 5], text[at : at + 5]
                batch.append(bytes(text))
            together = take(*batch, type_=type_)
            alone = [take(one, type_=type_) for one in batch]
            assert together.frame[MESSAGE].to_list() == [i for i, one in enumerate(alone) if one.frame.height]
            if together.frame.height:
                rows = pl.concat([one.frame.drop(MESSAGE) for one in alone])
                assert rows.equals(together.frame.drop(MESSAGE))
