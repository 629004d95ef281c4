"""Each fault of the store that fails on demand does what it says, to boto3 and to polars."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import polars as pl
import pytest

from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.settings import Settings
from dash_pipeline.storage import s3
from dash_pipeline.storage.encryption import Key
from tests.faults import Fault, faulty

DATA = secrets.token_bytes(300_000)
SEAL = Key("mine", bytes(range(32)))
ROWS = 200_000


@pytest.fixture(scope="module")
def proxied(settings: Settings) -> Iterator[tuple[Settings, Fault]]:
    with faulty(settings) as (through, fault):
        yield through, fault


@pytest.fixture
def fault(proxied: tuple[Settings, Fault]) -> Iterator[Fault]:
    proxied[1].fine()
    proxied[1].requests.clear()
    yield proxied[1]
    proxied[1].fine()


@pytest.fixture
def bucket(proxied: tuple[Settings, Fault], fault: Fault) -> s3.Bucket:
    return s3.bucket(proxied[0])


@pytest.fixture
def direct(settings: Settings) -> s3.Bucket:
    """The store itself, which shows what arrived."""
    return s3.bucket(settings)


@pytest.fixture
def key(unique: Callable[[str], str]) -> str:
    return f"faults/{unique('a')}"


@pytest.fixture
def parquet(settings: Settings, direct: s3.Bucket, key: str) -> str:
    """An object of many row groups; its key."""
    frame = pl.DataFrame({"n": pl.int_range(ROWS, eager=True)}).with_columns(noise=pl.col("n").hash())
    frame.write_parquet(f"s3://{direct.name}/{key}.parquet", storage_options=options(settings), row_group_size=10_000)
    return f"{key}.parquet"


def options(settings: Settings) -> dict[str, Any]:
    assert settings.s3_access_key
    assert settings.s3_secret_key
    return {
        "aws_endpoint_url": settings.s3_endpoint or "",
        "aws_region": settings.s3_region,
        "aws_access_key_id": settings.s3_access_key,
        "aws_secret_access_key": settings.s3_secret_key.get_secret_value(),
        "aws_allow_http": "true",
        "max_retries": 0,
    }


def scan(settings: Settings, key: str) -> pl.LazyFrame:
    return pl.scan_parquet(f"s3://{settings.s3_bucket}/{key}", storage_options=options(settings))


# --- without a fault


def test_everything_passes(bucket: s3.Bucket, direct: s3.Bucket, fault: Fault, key: str) -> None:
    """Signed requests, conditions, encrypted objects, parts, listings, deletions."""
    bucket.put(key, DATA)
    assert direct.get(key) == bucket.get(key) == DATA
    bucket.put(f"{key}-sealed", DATA, seal=SEAL)
    assert direct.get(f"{key}-sealed", SEAL) == bucket.get(f"{key}-sealed", SEAL) == DATA
    with pytest.raises(s3.Conflict):
        bucket.put(key, b"", new=True)
    found = bucket.read(key)
    assert bucket.read(key, found) is found
    assert bucket.get(f"{key}-not-there") is None
    assert bucket.keys(key) == [key, f"{key}-sealed"]
    bucket.delete([key, f"{key}-sealed"])
    assert direct.keys(key) == []
    assert {(one.method, one.status) for one in fault.requests} >= {("GET", 304), ("GET", 404), ("POST", 200)}


def test_files_of_several_parts_pass(bucket: s3.Bucket, key: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, data = tmp_path_factory.mktemp("parts"), secrets.token_bytes(40 << 20)
    (folder / "in").write_bytes(data)
    bucket.upload(folder / "in", key, SEAL)
    bucket.download(key, folder / "out", SEAL)
    assert (folder / "out").read_bytes() == data
    bucket.delete([key])


def test_bytes_are_counted(
    proxied: tuple[Settings, Fault], bucket: s3.Bucket, direct: s3.Bucket, fault: Fault, parquet: str
) -> None:
    whole = len(direct.get(parquet) or b"")
    assert fault.requests == [], "that went past the proxy"
    bucket.get(parquet)
    assert fault.bytes_sent(parquet) == whole
    assert fault.bytes_sent(f"{parquet}x") == 0
    (one,) = fault.requests
    assert (one.method, one.path, one.range, one.status) == ("GET", f"/{bucket.name}/{parquet}", "", 200)
    fault.requests.clear()
    assert scan(proxied[0], parquet).filter(pl.col("n") == 3).collect().height == 1
    assert 0 < fault.bytes_sent(parquet) < whole / 4, "one row group of twenty, and the footer"
    assert all(one.range.startswith("bytes=") and one.status == 206 for one in fault.requests if one.sent)


# --- faults


def test_down(proxied: tuple[Settings, Fault], bucket: s3.Bucket, fault: Fault, parquet: str) -> None:
    assert bucket.get(parquet), "a connection is open now"
    fault.down()
    for use in (lambda: bucket.get(parquet), lambda: bucket.put(parquet, b""), lambda: bucket.keys("faults/")):
        with pytest.raises(Unavailable, match="no connection to"):
            use()
    with pytest.raises(OSError, match=r"(?i)error"):
        scan(proxied[0], parquet).collect()
    fault.fine()
    assert scan(proxied[0], parquet).collect().height == ROWS


def test_down_in_the_midst_of_a_request(bucket: s3.Bucket, fault: Fault, key: str) -> None:
    fault.slow(60)
    errors: list[Exception] = []

    def put() -> None:
        try:
            bucket.put(key, DATA)
        except Unavailable as error:
            errors.append(error)

    thread = threading.Thread(target=put)
    thread.start()
    wait_for(lambda: len(fault.requests) == 1)
    fault.down()
    thread.join(20)
    assert not thread.is_alive()
    fault.fine()
    assert len(errors) == 1
    assert bucket.get(key) is None


def test_slow(proxied: tuple[Settings, Fault], bucket: s3.Bucket, fault: Fault, parquet: str) -> None:
    fault.slow(0.5)
    started = time.monotonic()
    assert bucket.get(parquet)
    assert time.monotonic() - started >= 0.5
    started = time.monotonic()
    assert scan(proxied[0], parquet).collect().height == ROWS
    assert time.monotonic() - started >= 0.5


def test_what_is_held_back_goes_on_when_all_is_fine_again(bucket: s3.Bucket, fault: Fault, key: str) -> None:
    fault.slow(60)
    thread = threading.Thread(target=bucket.put, args=(key, DATA))
    started = time.monotonic()
    thread.start()
    wait_for(lambda: len(fault.requests) == 1)
    fault.fine()
    thread.join(20)
    assert time.monotonic() - started < 20
    assert bucket.get(key) == DATA


def test_full(proxied: tuple[Settings, Fault], bucket: s3.Bucket, fault: Fault, parquet: str, key: str) -> None:
    fault.full()
    with pytest.raises(Unavailable, match="answers XMinioStorageFull"):
        bucket.put(key, DATA)
    with pytest.raises(OSError, match="507"):
        pl.DataFrame({"n": [1]}).write_parquet(f"s3://{bucket.name}/{key}", storage_options=options(proxied[0]))
    assert bucket.get(key) is None
    assert scan(proxied[0], parquet).collect().height == ROWS
    bucket.delete([parquet])
    assert bucket.keys(parquet) == []


def test_corrupt(proxied: tuple[Settings, Fault], bucket: s3.Bucket, fault: Fault, parquet: str, key: str) -> None:
    """One bit, which what is read in ranges does not show by itself; and only where the path matches."""
    bucket.put(key, DATA)
    right, noise = bucket.get(parquet), scan(proxied[0], parquet).select("noise").collect()
    assert right
    fault.corrupt(parquet)
    wrong = bucket.client.get_object(Bucket=bucket.name, Key=parquet, Range="bytes=100-299")["Body"].read()
    assert [i for i in range(200) if wrong[i] != right[100 + i]] == [100]
    assert wrong[100] ^ right[200] == 1
    assert bucket.get(key) == DATA
    try:
        read = scan(proxied[0], parquet).select("noise").collect()
    except (OSError, pl.exceptions.PolarsError):
        read = noise.clear()
    assert not read.equals(noise)
    fault.fine()
    assert bucket.get(parquet) == right


@pytest.mark.parametrize("seal", [None, SEAL])
def test_corrupt_is_seen_by_the_checksum_that_boto3_stores(
    bucket: s3.Bucket, fault: Fault, key: str, seal: Key | None
) -> None:
    bucket.put(key, DATA, seal=seal)
    fault.corrupt(key)
    with pytest.raises(DashError, match=f"{key}: .* is not what was stored"):
        bucket.get(key, seal)


def test_corrupt_writes(
    proxied: tuple[Settings, Fault], bucket: s3.Bucket, direct: s3.Bucket, fault: Fault, key: str
) -> None:
    """The store refuses what is not what was signed, so nothing wrong is ever kept."""
    fault.corrupt_writes(key)
    with pytest.raises(DashError, match="refuses"):
        bucket.put(key, DATA)
    with pytest.raises(OSError, match="400"):
        pl.DataFrame({"n": [1]}).write_parquet(f"s3://{bucket.name}/{key}", storage_options=options(proxied[0]))
    assert direct.get(key) is None
    bucket.put("faults/another", DATA)
    assert direct.get("faults/another") == DATA


def test_cut(proxied: tuple[Settings, Fault], bucket: s3.Bucket, fault: Fault, parquet: str, key: str) -> None:
    bucket.put(key, DATA)
    fault.requests.clear()
    fault.cut("faults/", 1000)
    with pytest.raises(Unavailable, match="no connection to"):
        bucket.get(key)
    assert {one.sent for one in fault.requests} == {1000}
    with pytest.raises((OSError, pl.exceptions.ComputeError)):
        scan(proxied[0], parquet).collect()
    fault.cut("elsewhere", 1000)
    assert bucket.get(key) == DATA


def test_a_write_that_is_cut_leaves_nothing(bucket: s3.Bucket, direct: s3.Bucket, fault: Fault, key: str) -> None:
    fault.cut(key, 1000)
    with pytest.raises(Unavailable):
        bucket.put(key, DATA)
    assert direct.get(key) is None


def test_it_ends_with_its_block(settings: Settings) -> None:
    with faulty(settings) as (through, _):
        assert s3.bucket(through).get("faults/not-there") is None
    with pytest.raises(Unavailable, match="no connection"):
        s3.bucket(through).get("faults/not-there")


def wait_for(what: Callable[[], bool], seconds: float = 20) -> None:
    """Until it is so."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)
