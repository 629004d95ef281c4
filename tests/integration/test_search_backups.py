"""Snapshots of the indexes on the real node and the real S3: what is recorded is what comes back, or it is told."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from opensearchpy import NotFoundError, OpenSearch
from typer.testing import CliRunner

from dash_pipeline import cli
from dash_pipeline.backups import search as backups
from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.settings import Settings
from dash_pipeline.storage import s3, search
from dash_pipeline.storage.migrate import upgrade
from dash_pipeline.storage.search import alerts
from dash_pipeline.storage.search.follower import held
from tests.faults import faulty


@pytest.fixture(scope="module")
def migrated(database: Settings) -> Settings:
    upgrade(database)
    # What other files of tests have left is not in the way.
    opensearch = search.client(database)
    backups._drop(opensearch, backups._indexes(opensearch))
    return database


@pytest.fixture
def mine(migrated: Settings, unique: Callable[[str], str]) -> Iterator[Settings]:
    """Settings with a bucket of the test's own."""
    settings = migrated.model_copy(update={"s3_bucket": unique("snapshots")})
    store = s3.bucket(settings)
    store.client.create_bucket(Bucket=store.name)
    yield settings
    alerts.delete(search.client(settings))
    with contextlib.suppress(NotFoundError):
        search.client(settings).snapshot.delete_repository(repository=backups.REPOSITORY)
    store.delete(store.keys(""))
    store.client.delete_bucket(Bucket=store.name)


@pytest.fixture
def opensearch(migrated: Settings) -> OpenSearch:
    return search.client(migrated)


@pytest.fixture
def chain(mine: Settings, opensearch: OpenSearch, unique: Callable[[str], str]) -> Iterator[str]:
    """A chain with 2,500 transactions and a few tokens in its indexes, more than a page of results."""
    name = unique("c")
    search.ensure(mine, [name])
    write(opensearch, f"transactions-{name}", range(2_500), 1)
    write(opensearch, f"token-performance-{name}", range(3), 1)
    yield name
    search.delete(opensearch, name)


def write(opensearch: OpenSearch, alias: str, numbers: range, version: int) -> None:
    """Documents as followers write them: with ids, routing and external versions."""
    field = "block_hash" if alias.startswith("transactions") else "symbol"
    lines = []
    for n in numbers:
        action = {"_id": f"{n}", "routing": f"{n % 7}", "version": version, "version_type": "external"}
        lines += [json.dumps({"index": action}), json.dumps({"chain": alias, field: f"ü{n}/{version}"})]
    written = opensearch.bulk(body="\n".join(lines) + "\n", index=alias, params={"require_alias": "true"})
    assert not written["errors"], written["items"][0]


def named(snapshot: backups.Snapshot, chain: str) -> dict[str, backups.Index]:
    return {one.name: one for one in snapshot.indexes if chain in one.name}


def drilled_indexes(opensearch: OpenSearch) -> list[str]:
    return sorted(opensearch.indices.get(index="drill-*", params={"filter_path": "*.aliases"}))


def test_what_was_recorded_comes_back(mine: Settings, opensearch: OpenSearch, chain: str) -> None:
    """Whatever happened to the indexes since: the snapshot is a point in time."""
    taken = backups.snapshot(mine)
    indexes = named(taken, chain)
    assert {name: one.documents for name, one in indexes.items()} == {
        f"transactions-{chain}-000001": 2_500,
        f"token-performance-{chain}-000001": 3,
        f"wallet-activity-{chain}-000001": 0,
    }
    assert all(one.digest for one in taken.indexes)
    assert backups.snapshots(mine) == [taken]
    write(opensearch, f"transactions-{chain}", range(100, 200), 2)
    write(opensearch, f"token-performance-{chain}", range(3, 9), 1)
    search.delete(opensearch, chain)
    found = backups.drill(mine)
    assert (found.snapshot, found.differences, found.uncompared) == (taken, (), ())
    assert found.documents == taken.documents
    assert 0 < found.restore_s < found.seconds
    assert found.age_s > 0
    assert drilled_indexes(opensearch) == []
    assert not opensearch.indices.exists_alias(name=f"transactions-{chain}"), "a drill restores beside what is in use"


def test_of_many_chains(mine: Settings, opensearch: OpenSearch, chain: str, unique: Callable[[str], str]) -> None:
    """Their names together are longer than a request's line may be (4 KiB)."""
    chains = [f"{unique('many')}{'x' * 60}" for _ in range(15)]
    search.ensure(mine, chains)
    try:
        taken = backups.snapshot(mine)
        assert sum(len(one.name) for one in taken.indexes) > 4096
        assert all(one.digest for one in taken.indexes)
    finally:
        for name in chains:
            search.delete(opensearch, name)


def test_every_part_of_a_document_counts(mine: Settings, opensearch: OpenSearch, chain: str) -> None:
    before = named(backups.snapshot(mine), chain)[f"token-performance-{chain}-000001"]
    write(opensearch, f"token-performance-{chain}", range(1), 2)
    after = named(backups.snapshot(mine), chain)[f"token-performance-{chain}-000001"]
    assert after.documents == before.documents
    assert after.digest != before.digest


def test_only_the_platforms_indexes_are_taken(mine: Settings, opensearch: OpenSearch, chain: str) -> None:
    other = f"other-{chain}"
    opensearch.indices.create(index=other, body={"aliases": {f"{other}-alias": {}}})
    alerts.ensure(opensearch)
    try:
        taken = backups.snapshot(mine)
    finally:
        opensearch.indices.delete(index=other)
    kinds = {one.name.rsplit("-", 1)[0].removesuffix(f"-{chain}") for one in taken.indexes if chain in one.name}
    assert kinds == set(search.INDEXES)
    assert other not in {one.name for one in taken.indexes}
    assert {"alerts"} == {alias for one in taken.indexes if one.name == "alerts-000001" for alias in one.aliases}


def test_a_follower_waits_for_the_moment(mine: Settings, opensearch: OpenSearch, chain: str) -> None:
    """Documents are written all the time under the chain's lock, and the record is exact all the same."""
    stop, written = threading.Event(), 0

    def follow() -> None:
        nonlocal written
        with search.connect(mine) as conn:
            while not stop.is_set():
                with held(conn, chain, wait=True):
                    written += 1
                    write(opensearch, f"transactions-{chain}", range(written, written + 50), written + 1)

    thread = threading.Thread(target=follow)
    thread.start()
    wait_for(lambda: written > 3)
    said: list[str] = []
    try:
        taken = backups.snapshot(mine, said.append)
    finally:
        stop.set()
        thread.join(30)
    assert said == []
    assert all(one.digest for one in named(taken, chain).values())
    assert taken.held_s < 10
    assert backups.drill(mine).differences == ()


def test_an_index_that_somebody_writes_to_is_taken_again(mine: Settings, opensearch: OpenSearch, chain: str) -> None:
    """By one that knows no locks: the sequence numbers tell."""
    stop, said, version = threading.Event(), [], itertools.count(2)

    def disturb() -> None:
        while not stop.is_set():
            write(opensearch, f"transactions-{chain}", range(5), next(version))

    def say(line: str) -> None:
        said.append(line)
        if len(said) == before_quiet:
            stop.set()

    for before_quiet in (1, 99):
        stop.clear()
        said.clear()
        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            taken = backups.snapshot(mine, say)
        finally:
            stop.set()
            thread.join(30)
        assert f"transactions-{chain}-000001" in said[0]
        if before_quiet == 1:
            assert all(one.digest for one in taken.indexes), "taken again when it was quiet"
        else:
            assert not named(taken, chain)[f"transactions-{chain}-000001"].digest
            assert backups.drill(mine).uncompared == (f"transactions-{chain}-000001",)
    assert len(backups.snapshots(mine)) == 2, "what was not exact is deleted"
    states = backups._states(opensearch, backups.REPOSITORY)
    assert set(states) == {one.name for one in backups.snapshots(mine)}


def rewrite(settings: Settings, snapshot: backups.Snapshot) -> None:
    """Another manifest for a snapshot."""
    s3.bucket(settings).put(f"backups/search/manifests/{snapshot.name}.json", msgspec.json.encode(snapshot))


def test_a_drill_tells_what_is_not_as_it_was_recorded(mine: Settings, opensearch: OpenSearch, chain: str) -> None:
    old = backups.snapshot(mine)
    write(opensearch, f"transactions-{chain}", range(1), 2)
    rewrite(mine, replace(backups.snapshot(mine), indexes=old.indexes))
    found = backups.drill(mine)
    assert len(found.differences) == 1
    assert found.differences[0].startswith(f"transactions-{chain}-000001: 2,500 documents with sum ")
    assert drilled_indexes(opensearch) == []


@pytest.mark.parametrize("damage", ["lost", "altered"])
def test_objects_that_are_lost_or_altered(mine: Settings, opensearch: OpenSearch, chain: str, damage: str) -> None:
    backups.snapshot(mine)
    store = s3.bucket(mine)
    sizes = {
        key: len(store.get(key) or b"") for key in store.keys("backups/search/repository/indices/") if "/__" in key
    }
    largest = max(sizes, key=lambda key: sizes[key])
    if damage == "lost":
        store.delete([largest])
    else:
        data = bytearray(store.get(largest) or b"")
        data[len(data) // 2] ^= 1
        store.put(largest, bytes(data))
    with pytest.raises(DashError, match=r"shards of transactions-.* do not come back"):
        backups.drill(mine)
    assert drilled_indexes(opensearch) == []


def test_a_repository_that_is_gone(mine: Settings, opensearch: OpenSearch, chain: str) -> None:
    with pytest.raises(DashError, match=r"no snapshot yet under s3://.*; asset backups/search takes one"):
        backups.drill(mine)
    taken = backups.snapshot(mine)
    opensearch.snapshot.delete_repository(repository=backups.REPOSITORY)
    assert backups.drill(mine).differences == (), "it is registered again"
    store = s3.bucket(mine)
    store.delete(store.keys("backups/search/repository/"))
    with pytest.raises(DashError, match=taken.name) as error:
        backups.drill(mine)
    assert "\n" not in str(error.value)
    assert drilled_indexes(opensearch) == []


def test_the_store_down(mine: Settings, opensearch: OpenSearch, chain: str) -> None:
    """Told in one line, nothing is recorded, and all is well when it is back."""
    with faulty(mine) as (through, fault):
        first = backups.snapshot(through)
        fault.down()
        for use in (backups.snapshot, backups.snapshots, backups.drill, backups.forget, backups.restore):
            with pytest.raises(Unavailable) as error:
                use(through)
            assert "\n" not in str(error.value)
            assert through.s3_endpoint
            assert through.s3_endpoint in str(error.value)
        fault.fine()
        assert backups.snapshots(through) == [first]
        fault.full()
        with pytest.raises(Unavailable):
            backups.snapshot(through)
        fault.fine()
        second = backups.snapshot(through)
        backups.forget(through)
        assert set(backups._states(opensearch, backups.REPOSITORY)) == {one.name for one in backups.snapshots(through)}
        assert backups.drill(through).snapshot == second
    backups.register(mine)


KILLED = """
import sys
from dash_pipeline.backups import search
from dash_pipeline.settings import Settings
settings = Settings.model_validate_json(sys.stdin.read())
getattr(search, sys.argv[1])(settings)
"""


def start(settings: Settings, what: str) -> subprocess.Popen[str]:
    """`what` of the module, in a process of its own."""
    plain = settings.model_dump(mode="json")
    for name in type(settings).model_fields:
        if hasattr(getattr(settings, name), "get_secret_value"):
            plain[name] = getattr(settings, name).get_secret_value()
    process = subprocess.Popen([sys.executable, "-c", KILLED, what], stdin=subprocess.PIPE, text=True)
    assert process.stdin
    process.stdin.write(json.dumps(plain))
    process.stdin.close()
    return process


def test_killed_in_the_midst(mine: Settings, opensearch: OpenSearch, chain: str) -> None:
    """A snapshot, then a drill: the next one finishes, what was left is swept, and nothing stays held."""
    with faulty(mine) as (through, fault):
        first = backups.snapshot(through)
        fault.requests.clear()
        fault.slow(0.3)
        process = start(through, "snapshot")
        wait_for(lambda: any(one.method in ("PUT", "POST") and "/indices/" in one.path for one in fault.requests))
        process.send_signal(signal.SIGKILL)
        process.wait()
        fault.fine()
        assert backups.snapshots(through) == [first]
        wait_for(lambda: "IN_PROGRESS" not in backups._states(opensearch, backups.REPOSITORY).values())
        wait_for(lambda: free(through))
        second = backups.snapshot(through)
        left = set(backups._states(opensearch, backups.REPOSITORY)) - {first.name, second.name}
        assert len(left) == 1
        assert left <= set(backups.forget(through))
        assert backups.drill(through).snapshot == second
        fault.slow(0.3)
        process = start(through, "drill")
        wait_for(lambda: drilled_indexes(opensearch) != [])
        process.send_signal(signal.SIGKILL)
        process.wait()
        fault.fine()
        wait_for(lambda: free(through))
        found = backups.drill(through)
        assert (found.snapshot, found.differences) == (second, ())
        assert drilled_indexes(opensearch) == []
    backups.register(mine)


def free(settings: Settings) -> bool:
    """Whether the database has noticed that who held the lock is dead."""
    with search.connect(settings) as conn, contextlib.suppress(DashError), backups._alone(conn):
        return True
    return False


def test_one_at_a_time(mine: Settings, chain: str) -> None:
    with search.connect(mine) as conn, backups._alone(conn):
        for use in (backups.snapshot, backups.forget, backups.drill):
            with pytest.raises(DashError, match="is under way"):
                use(mine)


def test_what_is_kept(mine: Settings, opensearch: OpenSearch, chain: str) -> None:
    """Of a day the newest; the rule itself has its own tests."""
    a, b, c = (backups.snapshot(mine) for _ in range(3))
    noon = a.taken_at.replace(hour=12) - timedelta(days=40)  # of one day, whatever the time is now
    a, b = (replace(one, taken_at=noon - timedelta(minutes=n)) for n, one in enumerate((a, b)))
    rewrite(mine, a)
    rewrite(mine, b)
    assert backups.forget(mine) == [b.name]
    assert [one.name for one in backups.snapshots(mine)] == [c.name, a.name]
    assert set(backups._states(opensearch, backups.REPOSITORY)) == {a.name, c.name}
    assert backups.forget(mine) == []


def test_the_operators_restore(mine: Settings, opensearch: OpenSearch, chain: str) -> None:
    """In place of what is there, and where nothing is; further documents go to the restored index."""
    taken = backups.snapshot(mine)
    name = f"transactions-{chain}"
    write(opensearch, name, range(10), 5)
    assert backups.restore(mine).name == taken.name
    assert list(opensearch.indices.get_alias(name=name)) == [f"{name}-000002"]
    assert not opensearch.indices.exists(index=f"{name}-000001")
    assert opensearch.count(index=name)["count"] == 2_500
    assert opensearch.get(index=name, id="3", params={"routing": "3"})["_version"] == 1
    search.delete(opensearch, chain)
    backups.restore(mine, taken.name)
    assert opensearch.count(index=name)["count"] == 2_500
    assert named(backups.snapshot(mine), chain)[f"{name}-000001"].digest == named(taken, chain)[f"{name}-000001"].digest
    write(opensearch, name, range(2_500, 2_510), 6)
    with pytest.raises(DashError, match="no snapshot dash-never under"):
        backups.restore(mine, "dash-never")


def test_the_operators_commands(
    mine: Settings, opensearch: OpenSearch, chain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dash_pipeline.settings.load_settings", lambda: mine)
    said = CliRunner().invoke(cli.app, ["search", "snapshot"])
    taken = backups.snapshots(mine)[0]
    assert said.stdout.startswith(f"{taken.name}: {taken.documents:,} documents in ")
    search.delete(opensearch, chain)
    listed = CliRunner().invoke(cli.app, ["search", "snapshots", "--json"])
    assert json.loads(listed.stdout)[0] == {"name": taken.name, "documents": taken.documents}
    drilled = CliRunner().invoke(cli.app, ["drill", "--only", "search", "--json"])
    assert drilled.exit_code == 0
    (found,) = json.loads(drilled.stdout).values()
    assert (found["snapshot"]["name"], found["differences"]) == (taken.name, [])
    said = CliRunner().invoke(cli.app, ["drill", "--only", "search"])
    assert "every index is what it was" in said.stdout
    done = CliRunner().invoke(cli.app, ["search", "restore"])
    assert done.stdout == f"{taken.name}: {taken.documents:,} documents are back\n"
    assert opensearch.count(index=f"transactions-{chain}")["count"] == 2_500


def test_the_store_encrypts_what_the_node_writes(mine: Settings, chain: str) -> None:
    backups.snapshot(mine)
    store = s3.bucket(mine)
    keys = store.keys("backups/search/repository/")
    assert keys
    about: list[dict[str, Any]] = [store.client.head_object(Bucket=store.name, Key=key) for key in keys]
    assert {one.get("ServerSideEncryption") for one in about} == {"AES256"}


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    """Until it is so."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)
