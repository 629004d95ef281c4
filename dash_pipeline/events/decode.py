"""Messages -> frames, by the column.

Belongs here: JSON to a frame with a table's columns, and the reason why a message is not one of its rows.
Does not belong here: what the messages look like (`schemas.py`), ABI decoding (`abi.py`).

The whole batch is parsed in one call and each field extracted in one call. Only when that call fails is each message
looked at by itself, to find the ones to reject and the fields this schema does not know.
"""

from __future__ import annotations

from binascii import unhexlify
from dataclasses import dataclass
from functools import cache
from itertools import chain as chain_of
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from dash_pipeline.columns import constant
from dash_pipeline.events.amounts import MAX_UINT256
from dash_pipeline.events.schemas import MESSAGE_TYPES, Kind, MessageType

# The position of a row's message in the batch, beside the table's columns.
MESSAGE = "_message"

_LARGEST = str(MAX_UINT256)
_RECEIPT_EXTRA = (
    "receipt_l1_fee",
    "receipt_l1_gas_used",
    "receipt_l1_gas_price",
    "receipt_l1_fee_scalar",
    "receipt_blob_gas_price",
    "receipt_blob_gas_used",
)


@dataclass(frozen=True)
class Decoded:
    """`frame`: the type's table columns and `_message` (UInt32, position in the batch); rows whose message has no
    timestamp have a null `ts`. `rejects`: position and reason of each message that is not a row."""

    frame: pl.DataFrame
    rejects: list[tuple[int, str]]


def decode(messages: list[bytes], type_name: str, chain: str, max_bytes: int) -> Decoded:
    """Decode a batch of `ethereum-etl` messages of one type. Never raises for what a message holds."""
    type_ = MESSAGE_TYPES[type_name]
    rejects: list[tuple[int, str]] = []
    extra: list[str | None] | None = None
    positions: list[int] | None = None
    try:
        rows = _all_at_once(messages, type_name, max_bytes)
    except _BAD:
        rows, positions, extra, rejects = _one_by_one(messages, type_, max_bytes)
    position = pl.Series(MESSAGE, range(len(rows)) if positions is None else positions, dtype=pl.UInt32)
    frame, bad = _frame(rows, type_, chain, extra, position)
    if bad is not None:
        wrong = bad.is_not_null()
        rejects += zip(position.filter(wrong).to_list(), bad.filter(wrong).to_list(), strict=True)
        frame = frame.filter(~wrong)
    return Decoded(frame, rejects)


# Deep nesting ends msgspec's recursion, as it would Python's own.
_BAD = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def _all_at_once(messages: list[bytes], type_name: str, max_bytes: int) -> list[Any]:
    """The rows of messages that are each one JSON object as it should be; raises one of _BAD for any that is not."""
    sizes = np.fromiter(map(len, messages), np.int64, len(messages))
    joined = b"\n".join(messages)
    ends = np.cumsum(sizes + 1) - 1
    text = np.frombuffer(joined + b"\n", np.uint8)
    # The parser reads across lines. Between a closing and an opening brace it cannot be inside an object, so each
    # message holds at least one whole object; as many objects as messages make that exactly one.
    if (
        sizes.max(initial=0) > max_bytes
        or not (text[ends - sizes] == ord("{")).all()
        or not (text[ends - 1] == ord("}")).all()
    ):
        raise msgspec.ValidationError
    if not joined.isascii():
        joined.decode()  # raw fields are not looked into by the parser
    rows: list[Any] = _decoder(type_name).decode_lines(joined)
    if len(rows) != len(messages):
        raise msgspec.ValidationError
    return rows


@cache
def _decoder(type_name: str, strict: bool = True) -> msgspec.json.Decoder[Any]:
    type_ = MESSAGE_TYPES[type_name]
    return msgspec.json.Decoder(type_.strict if strict else type_.struct)


_ANY_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _one_by_one(
    messages: list[bytes], type_: MessageType, max_bytes: int
) -> tuple[list[Any], list[int], list[str | None], list[tuple[int, str]]]:
    """Rows, their positions, their unknown fields as JSON, and the rejects."""
    decoder = _decoder(type_.name, strict=False)
    rows, positions, extra, rejects = [], [], [], []
    for position, message in enumerate(messages):
        if len(message) > max_bytes:
            rejects.append((position, f"message of {len(message)} bytes, at most {max_bytes} are taken"))
            continue
        try:
            message.decode()
            row = decoder.decode(message)
            unknown = {k: v for k, v in _ANY_OBJECT.decode(message).items() if k not in type_.fields}
            extra.append(msgspec.json.encode(unknown).decode() if unknown else None)
        except _BAD as error:
            rejects.append((position, _reason(error, type_.name)))
            continue
        rows.append(row)
        positions.append(position)
    return rows, positions, extra, rejects


def _reason(error: Exception, type_name: str) -> str:
    if isinstance(error, RecursionError):
        return f"not a valid {type_name}: nested too deeply"
    kind = "not a valid " + type_name if isinstance(error, msgspec.ValidationError) else "not JSON"
    return f"{kind}: {error}"


def _frame(
    rows: list[Any], type_: MessageType, chain: str, extra: list[str | None] | None, position: pl.Series
) -> tuple[pl.DataFrame, pl.Series | None]:
    """The frame of the rows, and for each row the first reason to reject it (None where there is none at all).

    Column by column, without expressions: each of polars' queries costs more than all rows of a small batch.
    """
    reasons: list[pl.Series] = []
    columns: dict[str, pl.Series] = {"chain": constant(chain, pl.String, len(rows))}
    for name, (field, kind) in type_.columns.items():
        columns[name], wrong = _convert(list(map(attrgetter(field), rows)), kind, field)
        if wrong is not None:
            reasons.append(wrong)
        # A missing timestamp may still be found by the block's hash; every other key field is needed here.
        if not type_.table.columns[name].null and name != "ts" and columns[name].null_count():
            reasons.append(_mark(columns[name].is_null(), f"{field} is missing or null"))
    if type_.name == "log":
        for i, (column, wrong) in enumerate(_topics(list(map(attrgetter("topics"), rows)))):
            columns[f"topic{i}"] = column
            if wrong is not None:
                reasons.append(wrong)
    if "value_f" in type_.table.columns:
        columns["value_f"] = columns["value"].cast(pl.Float64, strict=False)
    if type_.name == "transaction":
        columns["receipt_extra"] = _receipt_extra(rows)
    columns["extra"] = (
        _without_nul(pl.Series(extra, dtype=pl.String)) if extra else constant(None, pl.String, len(rows))
    )
    frame = pl.DataFrame([*(_as(columns[name], name, dtype) for name, dtype in type_.table.schema().items()), position])
    return frame, pl.select(pl.coalesce(reasons)).to_series() if reasons else None


def _as(column: pl.Series, name: str, dtype: Any) -> pl.Series:
    return (column if column.dtype == dtype else column.cast(dtype)).alias(name)


def _convert(values: list[Any], kind: Kind, field: str) -> tuple[pl.Series, pl.Series | None]:
    """A column of the kind, and the reasons why values are wrong (None where none is)."""
    match kind:
        case "int":
            return pl.Series(values, dtype=pl.Int64), None
        case "bool":
            return pl.Series(values, dtype=pl.Boolean), None
        case "text":
            # PostgreSQL's text cannot hold the character NUL.
            return pl.Series(values, dtype=pl.String).str.replace_all("\0", "", literal=True), None
        case "time":
            seconds = pl.Series(values, dtype=pl.Int64)
            return (seconds * 1_000_000).cast(pl.Datetime("us", "UTC")), None
        case "hex":
            return _hex(values, field)
        case "uint256":
            return _uint256(_raw(values), field)
        case "json":
            return _without_nul(_raw(values)), None


def _hex(values: list[str | None], field: str) -> tuple[pl.Series, pl.Series | None]:
    if values.count(None) == len(values):
        return constant(None, pl.Binary, len(values)), None
    if (quick := _hex_at_once(values)) is not None:
        return pl.Series(quick, dtype=pl.Binary), None
    text = pl.Series(values, dtype=pl.String)
    column = text.str.strip_prefix("0x").str.decode("hex", strict=False)
    wrong = text.is_not_null() & (column.is_null() | ~text.str.starts_with("0x"))
    return column, _mark(wrong, f"{field} is not 0x and hex digits") if wrong.any() else None


def _hex_at_once(values: list[str | None]) -> list[bytes | None] | None:
    """Hashes, addresses and data decoded as one text; None where one is wrong."""
    if None in values:
        cells = np.array(values, object)
        there = cells != None  # noqa: E711
        present = _hex_at_once(cells[there].tolist())
        return None if present is None else _spread(present, there)
    sizes = np.fromiter(map(len, values), np.int64, len(values))  # type: ignore[arg-type]
    text = np.frombuffer("".join(values).encode(), np.uint8)  # type: ignore[arg-type]
    starts = np.cumsum(sizes) - sizes
    if len(text) != sizes.sum() or (sizes < 2).any() or (sizes % 2).any():
        return None
    if not ((text[starts] == ord("0")) & (text[starts + 1] == ord("x"))).all():
        return None
    width = int(sizes[0])
    same = width > 2 and bool((sizes == width).all())
    if same:
        digits = text.reshape(-1, width)[:, 2:].tobytes()
    else:
        rest = np.ones(len(text), np.bool_)
        rest[starts] = rest[starts + 1] = False
        digits = text[rest].tobytes()
    try:
        data = unhexlify(digits)
    except ValueError:
        return None
    if same:
        return np.frombuffer(data, f"V{width // 2 - 1}").tolist()  # type: ignore[no-any-return]
    ends = np.cumsum(sizes // 2 - 1)
    return list(map(data.__getitem__, map(slice, (ends - (sizes // 2 - 1)).tolist(), ends.tolist())))


def _spread(values: list[Any], there: npt.NDArray[np.bool_]) -> list[Any]:
    """The values at the places that are true, None at the others."""
    cells = np.full(len(there), None, object)
    cells[there] = values
    return cells.tolist()


def _topics(lists: list[list[str]]) -> list[tuple[pl.Series, pl.Series | None]]:
    """The columns topic0 to topic3 and the reasons why values are wrong."""
    counts = np.fromiter(map(len, lists), np.int64, len(lists))
    flat = np.array(list(chain_of.from_iterable(lists)), object)
    starts = np.cumsum(counts) - counts
    columns = [_spread(flat[starts[counts > i] + i].tolist(), counts > i) for i in range(4)]
    return [_hex(column, f"topics[{i}]") for i, column in enumerate(columns)]


def _raw(values: list[Any]) -> pl.Series:
    """The JSON text of raw values; null where it is `null`."""
    raw = list(map(bytes, values))
    nulls = raw.count(b"null")
    if nulls == len(raw):
        return constant(None, pl.String, len(raw))
    text = pl.Series(raw, dtype=pl.Binary).cast(pl.String, strict=False)
    return text.zip_with(text != "null", constant(None, pl.String, len(raw))) if nulls else text


def _uint256(text: pl.Series, field: str) -> tuple[pl.Series, pl.Series | None]:
    """Decimal digits of at most 2^256-1."""
    values = text.drop_nulls().to_list() if text.null_count() else text.to_list()
    joined = "".join(values)
    if not values or (
        joined.isascii() and joined.isdigit() and 0 < min(map(len, values)) <= max(map(len, values)) < 78
    ):
        return text, None
    fine = text.str.contains(r"^[0-9]{1,77}$").fill_null(True)
    largest = text.str.contains(r"^[0-9]{78}$").fill_null(False) & (text <= _LARGEST)
    wrong = ~(fine | largest)
    return text, _mark(wrong, f"{field} is not an integer from 0 to 2^256-1") if wrong.any() else None


def _mark(wrong: pl.Series, reason: str) -> pl.Series:
    return pl.select(pl.when(wrong).then(pl.lit(reason))).to_series()


def _receipt_extra(rows: list[Any]) -> pl.Series:
    """The roll-up and blob fields of the receipts as JSON objects, null where all are null."""
    fields = {name: _raw(list(map(attrgetter(name), rows))) for name in _RECEIPT_EXTRA}
    if all(column.null_count() == len(rows) for column in fields.values()):
        return constant(None, pl.String, len(rows))
    pairs = [pl.lit(f'"{name}":') + pl.col(name) for name in _RECEIPT_EXTRA]
    joined = pl.concat_str(pairs, separator=",", ignore_nulls=True)
    document = pl.when(joined != "").then(pl.lit("{") + joined + pl.lit("}"))
    return pl.DataFrame(fields).select(document).to_series()


def _without_nul(json: pl.Series) -> pl.Series:
    """JSON that jsonb takes: it refuses the escape of NUL. An escaped backslash before `u0000` is none."""
    if json.null_count() == len(json) or not json.str.contains("\\u0000", literal=True).any():
        return json
    return json.str.replace_all(r"\\u0000|(\\.)", "$1")
