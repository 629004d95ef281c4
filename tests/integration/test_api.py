"""The read API as a process of its own on a real TimescaleDB and a real OpenSearch, asked over HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml

from benchmarks.search import address, fill
from dash_pipeline.alerts import show
from dash_pipeline.errors import DashError
from dash_pipeline.settings import PREFIX, Settings
from dash_pipeline.stack import Stack
from dash_pipeline.storage import api_keys, search, timescale
from dash_pipeline.storage.migrate import upgrade
from dash_pipeline.storage.search import bulk, indexes
from tests.conftest import ROOT

PROGRAM = str(Path(sys.executable).with_name("dash-pipeline"))
SIZES = {"blocks": 60, "transactions": 240, "pools": 45, "wallets": 12}
NOON = datetime.fromisoformat("2024-05-01T12:00:00+00:00")
ALERTS = 23
CACHE_S = 1.0
TIMEOUT_S = 1.0
TIERS = {
    "anonymous": {"rate": 1000, "burst": 1000},
    "tiny": {"rate": 1, "burst": 3},
    "paying": {"rate": 5000, "burst": 5000},
}


@dataclass
class Api:
    """The running API, and what is behind it."""

    client: httpx.Client
    settings: Settings
    chain: str
    environment: dict[str, str]

    def get(self, path: str, **params: Any) -> httpx.Response:
        return self.client.get(path, params=params or None)

    def ok(self, path: str, **params: Any) -> Any:
        answer = self.get(path, **params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def pages(self, path: str, between: Callable[[], object] = lambda: None, **params: Any) -> list[Any]:
        """All items of all pages; `between` is called after the first."""
        page = self.ok(path, **params)
        items = list(page["items"])
        between()
        while page["next_cursor"]:
            page = self.ok(path, **params, cursor=page["next_cursor"])
            items += page["items"]
        return items

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The command line, with the API's settings."""
        return subprocess.run(
            [PROGRAM, "api-keys", *words],
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def key(self, name: str, tier: str) -> str:
        """A new key; the command line, which costs a process, is tested once."""
        with timescale.connect(self.settings) as conn:
            return api_keys.add(conn, name, tier, list(TIERS))


@pytest.fixture(scope="module")
def api(database: Settings, unique: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A chain of an hour, with its indexes, alerts and predictions, and the API before it."""
    upgrade(database)
    folder, chain = tmp_path_factory.mktemp("api"), unique("c")
    registry = folder / "chains.toml"
    registry.write_text(f'[{chain}]\ntitle = "Test"\nchain_id = 1\nblock_time_s = 60.0\n')
    settings = database.model_copy(update={"chains_file": registry})
    with psycopg.connect(settings.timescale_dsn.get_secret_value()) as conn:
        fill(conn, chain, **SIZES, logs=False)
        for number in range(ALERTS):
            alert(conn, chain, number)
    for index in search.INDEXES:
        search.rebuild(settings, index, chain)
    environment = {
        f"{PREFIX}{name.upper()}": getattr(value, "get_secret_value", lambda value=value: str(value))()
        for name in ("timescale_dsn", "kafka_bootstrap", "kafka_security_protocol", "kafka_sasl_mechanism",
                     "kafka_username", "kafka_password", "opensearch_url", "opensearch_username",
                     "opensearch_password", "chains_file")
        if (value := getattr(settings, name)) is not None
    }  # fmt: skip
    environment |= {
        "DASH_STACK_DIR": str(folder), "DASH_API_TIERS": json.dumps(TIERS), "DASH_API_KEY_CACHE_S": str(CACHE_S),
        "DASH_API_TIMEOUT_S": str(TIMEOUT_S),
    }  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, "api", "--port", str(port)], env=os.environ | environment, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False) as client:
            wait_for(lambda: answers(client), f"the API starts: {folder / 'log'}")
            yield Api(client, settings, chain, environment)
        process.terminate()
        assert process.wait(15) in (0, -signal.SIGTERM), "it ends when it is told to"
        assert "Traceback" not in (folder / "log").read_text()
    finally:
        process.kill()
        search.delete(search.client(settings), chain)


def alert(conn: psycopg.Connection[Any], chain: str, number: int) -> None:
    """An alert of pool `number % 3`, and predictions about the pool and a wallet; every third is taken back."""
    id_ = number.to_bytes(16)
    pool, wallet = (bytes.fromhex(address(*one)[2:]) for one in (("p", number % 3), ("w", number % 2)))
    at = NOON + timedelta(minutes=number)
    conn.execute(
        "INSERT INTO intel.alerts (id, chain, pool, token, kind, evidence, severity, ts, block_number, tx_hash,"
        " wallets, raised_at, retracted_at)"
        " VALUES (%s, %s, %s, %s, 'reserve_drain', '{\"share\": 0.5}', %s, %s, %s, %s, %s, %s, %s)",
        (
            id_, chain, pool, bytes(20), ("low", "medium", "high")[number % 3 if number < 9 else 2], at, number,
            bytes(32), [wallet], at, at if number % 3 == 0 else None,
        ),
    )  # fmt: skip
    for kind, subject in (("pool", pool), ("wallet", wallet)):
        conn.execute(
            "INSERT INTO intel.predictions (anomaly_id, model, subject, subject_kind, chain, as_of, version, score,"
            " features, contributions, predicted_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, 'v1', 0.5, '{}', '{\"a\": 1.5, \"b\": -2}', %s)",
            (id_, f"{kind}_risk", subject, kind, chain, at, at),
        )


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def wait_for(true: Callable[[], bool], what: str, patience_s: float = 30) -> None:
    end = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def same(answer: Any, document: Any) -> bool:
    """The answer says what the document does; fields that the document lacks are null, times may end in Z."""
    if isinstance(document, dict):
        return all(same(value, document.get(name)) for name, value in answer.items())
    if isinstance(document, list):
        return len(answer) == len(document) and all(map(same, answer, document))
    if isinstance(answer, str) and answer.endswith("Z"):
        return datetime.fromisoformat(answer) == datetime.fromisoformat(document)
    return bool(answer == document or (answer == [] and document is None))


# ---------------------------------------------------------------------------------------------- answers


def test_a_token_is_its_document(api: Api) -> None:
    document = search.token(search.client(api.settings), api.chain, address("k", 7))
    answer = api.ok(f"/v1/tokens/{address('k', 7).upper().replace('0X', '0x')}", chain=api.chain)
    assert same(answer, document)
    assert answer["address"] == address("k", 7)
    assert answer["trades_7d"] >= 1


def test_tokens_are_ranked_as_the_index_ranks_them(api: Api) -> None:
    found = search.top_tokens(search.client(api.settings), api.chain, "24h", "volume", 1000)
    assert len(found) >= SIZES["pools"]
    items = api.pages("/v1/tokens", chain=api.chain, window="24h", by="volume", limit=10)
    assert [one["address"] for one in items] == [one["address"] for one in found]
    assert all(map(same, items, found))
    # Most tokens of this market were traded once, so that their change is the same: a page ends among equals.
    changes = [one["change_24h"] for one in api.pages("/v1/tokens", chain=api.chain, window="24h", limit=10)]
    pages = list(api.pages("/v1/tokens", chain=api.chain, window="24h", limit=97))
    assert changes == sorted(changes, reverse=True)
    assert len(set(changes)) < len(changes) - 10
    ranks = [(-one["change_24h"], one["address"]) for one in pages]
    assert ranks == sorted(set(ranks))
    assert len(ranks) == len(changes)


def test_a_token_s_history_is_the_mart_s(api: Api) -> None:
    """The mart as dbt describes it; that it is so is tested where it is built."""
    path, token = f"/v1/tokens/{address('k', 7)}/history", address("k", 7)
    missing = api.get(path, chain=api.chain)
    assert missing.status_code == 503
    assert missing.json()["detail"].endswith('"analytics.token_performance" does not exist: it is not made yet')
    assert api.get("/v1/alerts").status_code == 200, "the database is there"
    (described,) = (ROOT / "dbt" / "models" / "marts").glob("*.yml")
    (mart,) = [one for one in yaml.safe_load(described.read_text())["models"] if one["name"] == "token_performance"]
    columns = ", ".join(f"{one['name']} {one['data_type']}" for one in mart["columns"])
    start = NOON.replace(hour=0)
    with psycopg.connect(api.settings.timescale_dsn.get_secret_value()) as conn:
        conn.execute("CREATE SCHEMA IF NOT EXISTS analytics")
        conn.execute(f"CREATE TABLE analytics.token_performance ({columns})")
        for period, hours in (("1h", 1), ("24h", 24)):
            for number in range(9):
                at = start + timedelta(hours=hours * number)
                conn.execute(
                    "INSERT INTO analytics.token_performance (chain, token, period, period_start, period_end, trades,"
                    " volume_raw, close) VALUES (%s, %s, %s, %s, %s, %s, %s, 0.5)",
                    (api.chain, token, period, at, at + timedelta(hours=hours), number + 1, 2**200),
                )
    items = api.pages(path, chain=api.chain, period="24h", limit=4)
    assert [one["trades"] for one in items] == list(range(9, 0, -1))
    assert items[-1]["period_start"] == "2024-05-01T00:00:00Z"
    assert {(one["period"], one["volume_raw"], one["close"]) for one in items} == {("24h", str(2**200), 0.5)}
    assert api.ok(path, chain=api.chain)["items"][0]["period"] == "1h"
    assert api.ok(f"/v1/tokens/{address('k', 8)}/history", chain=api.chain)["items"] == []


def test_a_wallet_s_activity(api: Api) -> None:
    client, wallet = search.client(api.settings), address("w", 3)
    answer = api.ok(f"/v1/wallets/{wallet}/activity", chain=api.chain, transactions=5)
    assert same(answer["days"], search.wallet_days(client, api.chain, wallet, 7))
    assert same(answer["transactions"], search.wallet_transactions(client, api.chain, wallet, 5))
    assert len(answer["transactions"]) == 5
    assert all(one["token_transfers"] for one in answer["transactions"])
    assert answer["days"][0]["value_out"].isdigit()
    nobody = api.ok(f"/v1/wallets/{address('nobody', 0)}/activity", chain=api.chain)
    assert (nobody["days"], nobody["transactions"]) == ([], [])


def test_search_finds_tokens_wallets_and_transactions(api: Api) -> None:
    token, wallet = address("k", 5), address("w", 5)
    by_address = api.ok("/v1/search", q=token.upper().replace("0X", "0x"), chain=api.chain)
    assert [one["address"] for one in by_address["tokens"]] == [token]
    assert [one["wallet"] for one in api.ok("/v1/search", q=wallet, chain=api.chain)["wallets"]] == [wallet]
    assert token in [one["address"] for one in api.ok("/v1/search", q=token[:8], chain=api.chain)["tokens"]]
    (tx,) = search.wallet_transactions(search.client(api.settings), api.chain, wallet, 1)
    (found,) = api.ok("/v1/search", q=tx["tx_hash"], chain=api.chain)["transactions"]
    assert same(found, tx)
    prefixed = api.ok("/v1/search", q=tx["tx_hash"][:14], chain=api.chain)["transactions"]
    assert tx["tx_hash"] in [one["tx_hash"] for one in prefixed]


def test_alerts_by_every_filter(api: Api) -> None:
    with timescale.connect(api.settings) as conn:
        stored = show.alerts(conn, limit=100)
    every = api.pages("/v1/alerts", limit=5)
    assert [one["id"] for one in every] == [one["id"] for one in stored]
    assert len(every) == ALERTS
    assert all(map(same, every, stored))
    pool, since = address("p", 1), NOON + timedelta(minutes=12)
    for params, kept in (
        ({"severity": "high"}, [one for one in every if one["severity"] == "high"]),
        ({"severity": "medium"}, [one for one in every if one["severity"] != "low"]),
        ({"pool": pool.upper().replace("0X", "0x")}, [one for one in every if one["pool"] == pool]),
        ({"since": since.isoformat()}, every[: ALERTS - 12]),
        ({"active": True}, [one for one in every if not one["retracted"]]),
        ({"chain": api.chain, "active": True, "pool": pool, "severity": "high"},
         [one for one in every if (one["retracted"], one["pool"], one["severity"]) == (False, pool, "high")]),
    ):  # fmt: skip
        assert api.pages("/v1/alerts", **params, limit=4) == kept, params
        assert kept, params
    assert api.ok(f"/v1/alerts/{every[3]['id']}") == every[3]
    assert api.get(f"/v1/alerts/{'ab' * 16}").status_code == 404


def test_predictions_of_an_alert_a_pool_and_a_wallet(api: Api) -> None:
    of_alert = api.ok(f"/v1/alerts/{(4).to_bytes(16).hex()}/predictions")["items"]
    assert {one["subject_kind"] for one in of_alert} == {"pool", "wallet"}
    assert {one["alert"] for one in of_alert} == {(4).to_bytes(16).hex()}
    assert of_alert[0]["contributions"] == [["b", -2.0], ["a", 1.5]]
    of_pool = api.pages(f"/v1/pools/{address('p', 1)}/predictions", limit=3, chain=api.chain)
    assert [one["alert"] for one in of_pool] == [
        number.to_bytes(16).hex() for number in reversed(range(ALERTS)) if number % 3 == 1
    ]
    of_wallet = api.pages(f"/v1/wallets/{address('w', 1)}/predictions", limit=5)
    assert len(of_wallet) == len([number for number in range(ALERTS) if number % 2 == 1])
    assert api.ok(f"/v1/pools/{address('w', 1)}/predictions")["items"] == [], "it is no pool"


def test_health_says_how_each_chain_is(api: Api) -> None:
    answer = api.ok("/v1/health")
    assert answer["stores"] == {"database": "ok", "search": "ok", "kafka": "ok"}
    (chain,) = answer["chains"]
    assert (chain["chain"], chain["newest_block"], chain["index_batches"], chain["lag"]) == (
        api.chain, SIZES["blocks"] - 1, 0, 0,
    )  # fmt: skip
    assert chain["behind_s"] > 86_400


# ---------------------------------------------------------------------------------------------- pages, ETags, errors


def test_a_list_goes_on_where_it_ended_while_rows_arrive(api: Api) -> None:
    """Newer rows come before the first page: none is seen twice, none of the old ones is missed."""
    opensearch, wallet = search.client(api.settings), address("w", 2)
    name = indexes.alias(search.TRANSACTIONS_INDEX, api.chain)
    path = f"/v1/wallets/{wallet}/transactions"
    before = api.pages(path, chain=api.chain, limit=50)
    (newest,) = search.wallet_transactions(opensearch, api.chain, wallet, 1)
    added = newest | {"block_number": newest["block_number"] + 1, "tx_hash": "0x" + "7" * 64}
    action = {"index": {"_id": "added", "routing": newest["from_address"]}}
    lines = f"{json.dumps(action)}\n{json.dumps(added)}\n".encode()

    def add_transaction() -> None:
        assert not bulk.write(opensearch, name, [lines], 5).rejected
        opensearch.indices.refresh(index=name)

    during = api.pages(path, add_transaction, chain=api.chain, limit=4)
    assert during == before
    assert len(during) > 8
    assert api.pages(path, chain=api.chain, limit=4)[1:] == before, "the new one is there for who begins anew"

    alerts = api.pages("/v1/alerts", limit=50)

    def add_alert() -> None:
        with psycopg.connect(api.settings.timescale_dsn.get_secret_value()) as conn:
            alert(conn, api.chain, 200)

    try:
        assert api.pages("/v1/alerts", add_alert, limit=4) == alerts
        assert api.pages("/v1/alerts", limit=4)[1:] == alerts
    finally:
        with psycopg.connect(api.settings.timescale_dsn.get_secret_value()) as conn:
            conn.execute("DELETE FROM intel.alerts WHERE id = %s", ((200).to_bytes(16),))
            conn.execute("DELETE FROM intel.predictions WHERE anomaly_id = %s", ((200).to_bytes(16),))


def test_a_cursor_is_good_for_its_question_only(api: Api) -> None:
    cursor = api.ok("/v1/alerts", limit=4, severity="high")["next_cursor"]
    assert api.get("/v1/alerts", limit=7, severity="high", cursor=cursor).status_code == 200
    changed = ("A" if cursor[9] != "A" else "B").join((cursor[:9], cursor[10:]))
    for params in ({"severity": "high", "cursor": changed}, {"severity": "low", "cursor": cursor}):
        answer = api.get("/v1/alerts", **params)
        assert answer.status_code == 400
        assert answer.json()["detail"].startswith("cursor: it is not one that this question's last answer gave")


def test_what_has_not_changed_is_not_sent_again(api: Api) -> None:
    path = f"/v1/tokens/{address('k', 7)}"
    first = api.get(path, chain=api.chain)
    assert first.headers["cache-control"] == "private, max-age=2"
    tag = first.headers["etag"]
    for given in (tag, f'"x", {tag}', "*"):
        again = api.client.get(path, params={"chain": api.chain}, headers={"If-None-Match": given})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    other = api.client.get(path, params={"chain": api.chain}, headers={"If-None-Match": 'W/"other"'})
    assert other.status_code == 200
    alert_path = f"/v1/alerts/{(4).to_bytes(16).hex()}"
    tag = api.get(alert_path).headers["etag"]
    with psycopg.connect(api.settings.timescale_dsn.get_secret_value()) as conn:
        conn.execute("UPDATE intel.alerts SET revision = revision + 1 WHERE id = %s", ((4).to_bytes(16),))
    changed = api.client.get(alert_path, headers={"If-None-Match": tag})
    assert (changed.status_code, changed.json()["revision"]) == (200, 2)


def test_long_answers_are_compressed_if_the_client_likes(api: Api) -> None:
    long = {"params": {"chain": api.chain, "limit": 40}}
    assert api.client.get("/v1/tokens", **long).headers["content-encoding"] == "gzip"
    plain = api.client.get("/v1/tokens", **long, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers


@pytest.mark.parametrize(
    ("path", "status", "detail"),
    [
        ("/v1/tokens?chian=x", 400, "chian: no such parameter; there are: by, chain, cursor, limit,"),
        ("/v1/tokens?limit=1&limit=2", 400, "limit: given more than once"),
        ("/v1/tokens?limit=201", 400, "limit: Expected `int` <= 200"),
        ("/v1/tokens?window=2d", 400, "window: Invalid enum value '2d'"),
        ("/v1/alerts?since=yesterday", 400, "since: Invalid RFC3339"),
        ("/v1/alerts?since=2024-06-01T00:00:00", 400, "since: Expected `datetime` with a timezone"),
        ("/v1/tokens?chain=atlantis", 404, "chain: no atlantis in the registry (known: c"),
        ("/v1/tokens/0x12", 400, "address: Expected `str` matching regex"),
        ("/v1/search", 400, "Missing required query parameter 'q'"),
        ("/v1/token", 404, "there is no such path; /docs lists them"),
        ("/", 404, "there is no such path; /docs lists them"),
    ],
)
def test_a_wrong_request_is_a_problem_with_one_sentence(api: Api, path: str, status: int, detail: str) -> None:
    answer = api.client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    problem = answer.json()
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"].startswith(detail)
    assert "\n" not in problem["detail"]


# ---------------------------------------------------------------------------------------------- keys, limits


def test_a_tier_s_rate_is_kept_and_told(api: Api) -> None:
    key = api.key("tiny one", "tiny")
    got = [api.client.get("/v1/alerts?limit=1", headers={"X-Api-Key": key}) for _ in range(4)]
    assert [one.status_code for one in got] == [200, 200, 200, 429]
    assert got[0].headers["ratelimit-policy"] == '"tiny";q=3;w=3'
    assert [one.headers["ratelimit"] for one in got] == [f'"tiny";r={left};t=3' for left in (2, 1, 0, 0)]
    assert got[3].json()["detail"].startswith("tier tiny may ask 1 times a second, 3 times at once; try again in ")
    assert api.get("/v1/alerts").status_code == 200, "others may"
    time.sleep(int(got[3].headers["retry-after"]))
    assert api.client.get("/v1/alerts", headers={"X-Api-Key": key}).status_code == 200


def test_a_revoked_key_is_refused_within_the_time_that_keys_are_remembered(api: Api) -> None:
    done = api.run("add", "ann", "--tier", "paying")
    assert done.returncode == 0, done.stderr
    key = done.stdout.strip()
    headers = {"X-Api-Key": key}
    assert '"paying"' in api.client.get("/v1/alerts", headers=headers).headers["ratelimit"]
    with pytest.raises(DashError, match="NAME: there is a key ann already"):
        api.key("ann", "tiny")
    listed = json.loads(api.run("list", "--json").stdout)
    (ann,) = [one for one in listed if one["name"] == "ann"]
    assert (ann["tier"], ann["revoked_at"]) == ("paying", None)
    assert key not in api.run("list").stdout
    assert api.run("list", "--keys-map").stdout == f"{ann['hash']} paying\n"

    done = api.run("revoke", "ann")
    revoked = time.monotonic()
    assert done.returncode == 0, done.stderr
    wait_for(lambda: api.client.get("/v1/alerts", headers=headers).status_code == 401, "the key is refused", 5)
    assert time.monotonic() - revoked < CACHE_S + 0.5
    refused = api.client.get("/v1/alerts", headers=headers)
    assert refused.json()["detail"] == "X-Api-Key: there is no such key, or it is revoked"
    assert refused.headers["www-authenticate"]

    done = api.run("revoke", "ann")
    line = "NAME: no key ann that is not revoked; `dash-pipeline api-keys list` shows all"
    assert (done.returncode, done.stderr.strip()) == (2, line)
    with pytest.raises(DashError, match=r"--tier: gold is not one of anonymous, tiny, paying \(DASH_API_TIERS\)"):
        api.key("bob", "gold")


def test_requests_are_counted_by_route_and_tier(api: Api) -> None:
    api.get(f"/v1/tokens/{address('k', 1)}", chain=api.chain)
    text = api.get("/metrics").text
    assert 'dash_api_requests_total{route="/v1/tokens/{address}",status="200",tier="anonymous"}' in text
    assert 'dash_api_request_seconds_bucket{le="0.05",route="/v1/tokens/{address}",tier="anonymous"}' in text


# ---------------------------------------------------------------------------------------------- stores that are away


def away(api: Api, store: str, path: str, other: str) -> None:
    """The store's endpoints say so soon; others, and the probe, answer."""
    wait_for(lambda: api.get(path).status_code == 503, f"{store} is away", 5)
    started = time.monotonic()
    answer = api.get(path)
    assert time.monotonic() - started < TIMEOUT_S + 0.5
    assert (answer.status_code, answer.json()["store"], answer.headers["retry-after"]) == (503, store, "1")
    assert answer.json()["detail"].startswith(f"{store}: ")
    assert api.get("/healthz").status_code == 200
    assert api.get(other).status_code == 200

    def told() -> bool:
        health = api.get("/v1/health")
        return health.status_code == 503 and health.json()["stores"][store] != "ok"

    wait_for(told, "health says so", 6)


def back(api: Api, path: str) -> None:
    wait_for(lambda: api.get(path).status_code == 200, "it answers again", 15)
    wait_for(lambda: api.get("/v1/health").status_code == 200, "health says so", 6)


def test_a_database_that_is_stopped(api: Api, stack: Stack) -> None:
    tokens = f"/v1/tokens?chain={api.chain}"
    key = api.key("known", "paying")
    headers = {"X-Api-Key": key}
    assert api.client.get(tokens, headers=headers).status_code == 200
    stack.stop("timescale")
    try:
        away(api, "database", "/v1/alerts", tokens)
        time.sleep(CACHE_S)
        assert api.client.get(tokens, headers=headers).status_code == 200, "nobody can have revoked it"
        unknown = api.client.get(tokens, headers={"X-Api-Key": "never seen"})
        assert (unknown.status_code, unknown.json()["store"]) == (503, "database")
    finally:
        stack.start("timescale")
    back(api, "/v1/alerts")


def test_a_search_that_hangs(api: Api, stack: Stack) -> None:
    tokens, pid = f"/v1/tokens?chain={api.chain}", stack.pid("opensearch")
    os.kill(pid, signal.SIGSTOP)
    try:
        away(api, "search", tokens, "/v1/alerts")
    finally:
        os.kill(pid, signal.SIGCONT)
    back(api, tokens)


# ---------------------------------------------------------------------------------------------- the document


def test_it_does_what_its_document_says(api: Api, tmp_path: Path) -> None:
    """By schemathesis: requests that are right and wrong, all checks."""
    key = api.key("fuzzer", "paying")
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("st")), "run", str(api.client.base_url.join("/docs/openapi.json")),
            "--checks=all", "--max-examples=12", "--phases=examples,coverage,fuzzing", "--workers=2", "--seed=7",
            "--generation-database=none", f"--header=X-Api-Key: {key}",
        ],
        env=os.environ | {"SCHEMATHESIS_HOOKS": "api_hooks", "PYTHONPATH": str(Path(__file__).parent)},
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
