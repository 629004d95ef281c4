"""A labelled file becomes a frame, or one line that says which cell is wrong. Nothing in between."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dash_pipeline.errors import DashError
from dash_pipeline.models.labels import read_labels
from dash_pipeline.models.spec import RawColumn, Spec

SPEC = Spec(
    name="small",
    title="Small",
    subject="wallet",
    id_column="Address",
    label_column="FLAG",
    columns={
        "sent": RawColumn("sent", "a test", names=("Sent tnx",)),
        "held": RawColumn("held", "a test", blank=0.0, names=("uniq sent addr.1",)),
    },
    derive=dict,
)
HEADER = "Address,FLAG,sent,held"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "labels.csv"


def problem(file: Path, text: str, spec: Spec = SPEC) -> str:
    file.write_text(text)
    with pytest.raises(DashError) as caught:
        read_labels(spec, str(file))
    message = str(caught.value)
    assert "\n" not in message
    assert str(file) in message
    return message


def test_a_file_is_its_columns(file: Path) -> None:
    file.write_text(f"{HEADER}\n0xa,TRUE, 1.5 ,2\n0xb,false,1e3,-0.5\n0xc,1,7,\n0xd,0,,3\n")
    labels = read_labels(SPEC, str(file))
    assert labels.frame.schema == {"id": pl.String, "label": pl.Int8, "sent": pl.Float64, "held": pl.Float64}
    assert labels.frame["id"].to_list() == ["0xa", "0xb", "0xc", "0xd"]
    assert labels.frame["label"].to_list() == [1, 0, 1, 0]
    np.testing.assert_equal(labels.frame["sent"].to_numpy(), [1.5, 1000, 7, np.nan])
    assert labels.frame["held"].to_list() == [2, -0.5, 0, 3], "a blank is what the spec says"
    assert labels.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert labels.source == str(file)


def test_columns_are_found_by_their_other_names_and_the_rest_is_ignored(file: Path) -> None:
    header = "Index,ADDRESS,flag,uniq sent addr, Sent_tnx , uniq sent addr,most sent token"
    file.write_bytes(f'\ufeff{header}\r\n7,0xa,1,5,6,7,"Coin, the"\r\n\r\n8,0xb,0,8,9,10,\r\n'.encode())
    frame = read_labels(SPEC, str(file)).frame
    assert frame.rows() == [("0xa", 1, 6.0, 7.0), ("0xb", 0, 9.0, 10.0)]


def test_names_that_another_program_gave_a_repeated_column(file: Path) -> None:
    file.write_text("Address,FLAG,Sent tnx,uniq sent addr,uniq sent addr.1\n0xa,1,1,2,3\n")
    assert read_labels(SPEC, str(file)).frame.rows() == [("0xa", 1, 1.0, 3.0)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{HEADER}\n0xa,1,2,3\n0xb,1,two,3\n", "row 2 (line 3), column sent: 'two' is not a number"),
        (f"{HEADER}\n0xa,1,2,3\n0xb,1,inf,3\n", "row 2 (line 3), column sent: 'inf' is infinite"),
        (f"{HEADER}\n0xa,1,2,-Infinity\n", "row 1 (line 2), column held: '-Infinity' is infinite"),
        (f"{HEADER}\n0xa,1,2,1e999\n", "row 1 (line 2), column held: '1e999' is infinite"),
        (f"{HEADER}\n\n0xa,maybe,2,3\n", "row 1 (line 3), column FLAG: 'maybe' is none of TRUE, FALSE, 1, 0"),
        (f"{HEADER}\n0xa,2,2,3\n", "column FLAG: '2' is none of TRUE, FALSE, 1, 0"),
        (f"{HEADER}\n0xa,,2,3\n", "row 1 (line 2), column FLAG: the label is missing"),
        (f"{HEADER}\n ,1,2,3\n", "row 1 (line 2), column Address: the id is missing"),
        (f"{HEADER}\n0xa,1,2,3\n0xb,1,2\n", "row 2 (line 3) has 3 cells, the header 4"),
        (f"{HEADER}\n0xa,1,2,3,4\n", "row 1 (line 2) has 5 cells, the header 4"),
        (f'{HEADER}\n"0x\na",1,2,3\n0xb,1,x,3\n', "row 2 (line 4), column sent: 'x' is not a number"),
        (f'{HEADER}\n"0xa,1,2,3\n', "line 2: unexpected end of data"),
        ("Address,FLAG,held\n0xa,1,2\n", "columns of small are missing: sent"),
        ("sent\n1\n", "columns of small are missing: Address, FLAG, held"),
        ("", "columns of small are missing: Address, FLAG, sent, held"),
        (f"{HEADER}\n", "no rows"),
        (
            f"{HEADER}\n0xb,x,y,z\n0xa,1,two,3\n",
            "row 1 (line 2), column FLAG: 'x' is none of TRUE, FALSE, 1, 0, and 3",
        ),
    ],
)
def test_what_is_wrong_is_named(file: Path, text: str, says: str) -> None:
    assert says in problem(file, text)


def test_an_id_may_be_there_twice(file: Path) -> None:
    file.write_text(f"{HEADER}\n0xa,1,2,3\n0xa,0,2,3\n")
    assert read_labels(SPEC, str(file)).frame.height == 2


@pytest.mark.parametrize(
    "moment", ["2021-05-01T12:00:00.000000+0000", "2021-05-01 12:00:00", "2021-05-01T14:00:00+02:00", "1619870400"]
)
def test_moments_and_groups(file: Path, moment: str) -> None:
    file.write_text(f"{HEADER},as_of,group\n0xa,1,2,3,{moment},g\n")
    frame = read_labels(SPEC, str(file)).frame
    assert frame["as_of"].to_list() == [datetime(2021, 5, 1, 12, tzinfo=UTC)]
    assert frame["group"].to_list() == ["g"]


def test_rows_in_the_order_of_time_have_a_time(file: Path) -> None:
    timed = replace(SPEC, split="time")
    assert "columns of small are missing: as_of" in problem(file, f"{HEADER}\n0xa,1,2,3\n", timed)
    assert "column as_of: 'noon' is not a time" in problem(file, f"{HEADER},as_of\n0xa,1,2,3,noon\n", timed)
    assert "column as_of: the time is missing" in problem(file, f"{HEADER},as_of\n0xa,1,2,3,\n", timed)
    assert "column group: the group is missing" in problem(file, f"{HEADER},as_of,group\n0xa,1,2,3,5,\n", timed)


def test_parquet_is_read_as_csv_is(file: Path) -> None:
    frame = pl.DataFrame(
        {
            "Address": ["0xa", "0xb"],
            "FLAG": [True, False],
            "sent": [1, None],
            "held": [0.1, None],
            "as_of": [datetime(2021, 5, 1, tzinfo=UTC), datetime(2021, 5, 2, 0, 0, 0, 250_000, tzinfo=UTC)],
            "notes": [[1], [2]],
        }
    )
    frame.write_parquet(file)
    found = read_labels(SPEC, str(file)).frame
    assert found["label"].to_list() == [1, 0]
    np.testing.assert_equal(found["sent"].to_numpy(), [1, np.nan])
    assert found["held"].to_list() == [0.1, 0]
    assert found["as_of"].to_list() == frame["as_of"].to_list()
    frame.with_columns(sent=pl.Series([1.0, np.inf])).write_parquet(file)
    with pytest.raises(DashError, match="row 2, column sent: 'inf' is infinite"):
        read_labels(SPEC, str(file))


def test_what_is_no_table_at_all(file: Path, tmp_path: Path) -> None:
    with pytest.raises(DashError, match="No such file"):
        read_labels(SPEC, str(file))
    with pytest.raises(DashError, match="Is a directory"):
        read_labels(SPEC, str(tmp_path))
    with pytest.raises(DashError, match="not s3://bucket/key"):
        read_labels(SPEC, "s3://bucket")
    file.write_bytes(b"\x80\x81")
    with pytest.raises(DashError, match="neither UTF-8 text nor Parquet"):
        read_labels(SPEC, str(file))
    file.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DashError, match="not a Parquet file"):
        read_labels(SPEC, str(file))
