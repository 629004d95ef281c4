"""Notices on a real database to real receivers: told once, again, and when they are over; none is lost, none waits for
another channel."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, DagsterRunStatus, build_sensor_context
from dagster._core.test_utils import create_run_for_test

from dash_pipeline import settings as settings_module
from dash_pipeline.definitions import build_defs
from dash_pipeline.notify.notice import Notice
from dash_pipeline.notify.tell import Sent, deliver, resolve, tell
from dash_pipeline.settings import Channel, Settings
from dash_pipeline.storage import health, notices
from dash_pipeline.storage import timescale as db
from tests.mail import certificate, mail_server
from tests.webhooks import SECRET, Receiver

LAG = Notice("lag/c", "medium", "c: events wait", "100 events", "team:x", {"UI": "http://ui"})


@pytest.fixture
def conn(migrated: Settings) -> Iterator[db.Connection]:
    with db.connect(migrated) as conn:
        conn.execute(
            "TRUNCATE ops.notices, ops.notice_deliveries, ops.checkpoints, ops.stream_offsets, ops.dead_letters"
        )
        yield conn


def reach(
    settings: Settings, routes: list[str] | None = None, /, repeat_s: float = 3600, **channels: Channel
) -> Settings:
    return settings.model_copy(
        update={
            "notify_channels": channels,
            "owner_routes": {"team:x": routes or list(channels)},
            "alert_secret": SECRET,
            "notify_repeat_s": repeat_s,
        }
    )


def hook(receiver: Receiver, kind: str = "webhook") -> Channel:
    return Channel(kind=kind, url=receiver.url)  # type: ignore[arg-type]


def events(receiver: Receiver) -> list[str]:
    """What was taken, in order, each request once."""
    return [request.message["event"] for request in receiver.requests if request.new]


def due_now(conn: db.Connection) -> None:
    conn.execute("UPDATE ops.notice_deliveries SET next_try_at = clock_timestamp() WHERE delivered_at IS NULL")


def test_a_condition_is_told_once_again_after_the_interval_and_when_it_is_over(
    migrated: Settings, conn: db.Connection
) -> None:
    with Receiver() as ops:
        settings = reach(migrated, ops=hook(ops))
        assert [tell(conn, settings, LAG) for _ in range(3)] == ["raised", None, None]
        assert tell(conn, settings, replace(LAG, severity="high")) == "raised"
        conn.execute("UPDATE ops.notices SET told_at = told_at - interval '2 hours'")
        assert tell(conn, settings, replace(LAG, severity="high", text="200 events")) == "repeated"
        assert resolve(conn, settings, LAG.key, "all is well")
        assert not resolve(conn, settings, LAG.key)
        assert deliver(settings) == Sent(delivered=4)
        assert events(ops) == ["raised", "raised", "repeated", "resolved"]
        assert [request.message["text"] for request in ops.requests][2:] == ["200 events", "all is well"]
        assert tell(conn, settings, LAG) == "raised"
        assert deliver(settings) == Sent(delivered=1)
        assert all(request.signed for request in ops.requests)


def test_many_processes_that_find_the_same_tell_it_once(migrated: Settings, conn: db.Connection) -> None:
    with Receiver() as ops:
        settings = reach(migrated, ops=hook(ops))

        def find(_: int) -> None:
            with db.connect(settings) as own:
                tell(own, settings, LAG)
            deliver(settings)

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(find, range(12)))
        deliver(settings)
        assert len(ops.requests) == 1
        assert conn.execute("SELECT times FROM ops.notices").fetchone() == (12,)


def test_a_channel_that_is_down_loses_nothing_and_holds_up_no_other(migrated: Settings, conn: db.Connection) -> None:
    with Receiver() as up, Receiver(hang_s=1) as slow, Receiver() as down:
        down.down()
        settings = reach(migrated, down=hook(down), slow=hook(slow), up=hook(up))
        tell(conn, settings, LAG)
        began = time.time()
        assert deliver(settings) == Sent(delivered=2, failed=1)
        assert up.requests[0].at - began < 0.9
        resolve(conn, settings, LAG.key)
        due_now(conn)
        assert deliver(settings) == Sent(delivered=2, failed=1)
        down.up()
        due_now(conn)
        assert deliver(settings) == Sent(delivered=2)
        assert [events(one) for one in (up, slow, down)] == [["raised", "resolved"]] * 3
        assert notices.waiting(conn) == {}


def test_an_answer_that_was_lost_brings_the_same_request_again(migrated: Settings, conn: db.Connection) -> None:
    with Receiver() as ops:
        settings = reach(migrated, ops=hook(ops))
        tell(conn, settings, LAG)
        ops.fail(1, 503, Retry_After="120")
        assert deliver(settings) == Sent(failed=1)
        row = conn.execute("SELECT error, next_try_at - clock_timestamp() > '100 s' FROM ops.notice_deliveries")
        assert row.fetchone() == ("HTTP 503: status 503", True)
        assert deliver(settings) == Sent()
        due_now(conn)
        assert deliver(settings) == Sent(delivered=1)
        assert ops.requests[0].key == ops.requests[1].key


def test_what_a_killed_process_had_in_hand_is_sent_by_the_next(migrated: Settings, conn: db.Connection) -> None:
    with Receiver() as ops:
        settings = reach(migrated, ops=hook(ops))
        tell(conn, settings, LAG)
        assert notices.due(conn, "ops", lease_s=0.3)
        assert deliver(settings) == Sent()
        time.sleep(0.3)
        assert deliver(settings) == Sent(delivered=1)


def test_what_a_channel_refuses_or_nobody_takes_for_a_day_is_given_up(migrated: Settings, conn: db.Connection) -> None:
    with Receiver() as ops:
        settings = reach(migrated, ops=hook(ops))
        tell(conn, settings, LAG)
        tell(conn, settings, replace(LAG, key="lag/d"))
        ops.fail(1, 422)
        assert deliver(settings) == Sent(delivered=1, dropped=1)
        tell(conn, settings, replace(LAG, key="lag/e"))
        conn.execute("UPDATE ops.notice_deliveries SET queued_at = queued_at - interval '2 days'")
        assert deliver(settings) == Sent(dropped=1)
        dropped = conn.execute("SELECT dropped FROM ops.notice_deliveries WHERE dropped IS NOT NULL ORDER BY id")
        assert dropped.fetchall() == [("refused: HTTP 422: status 422",), ("given up: never tried",)]


def test_slack_gets_its_payload_and_no_signature(migrated: Settings, conn: db.Connection) -> None:
    with Receiver(refuses=lambda request: 0) as chat:
        settings = reach(migrated, chat=hook(chat, "slack"))
        tell(conn, settings, LAG)
        deliver(settings)
        (request,) = chat.requests  # the receiver wants a signature, and says 401
        assert "X-Dash-Signature" not in request.headers
        assert request.message["text"] == "MEDIUM: c: events wait"


@pytest.mark.parametrize("mode", ["smtp", "smtps", "smtp+plain"])
def test_mails_arrive_encrypted_as_the_address_says_and_with_a_password(
    migrated: Settings, conn: db.Connection, tmp_path: Path, mode: str
) -> None:
    with mail_server(mode, tmp_path, ("dash", "p@ss/word")) as box:
        url = f"{mode}://dash:p%40ss%2Fword@localhost:{box.port}"
        ca = None if mode == "smtp+plain" else tmp_path / "cert.pem"
        mail = Channel(kind="email", url=url, sender="dash@here.test", to=["one@x.test", "two@x.test"], ca_file=ca)
        settings = reach(migrated, mail=mail)
        tell(conn, settings, LAG)
        assert deliver(settings) == Sent(delivered=1)
        (message,) = box.messages
        assert (message["Subject"], message["To"]) == ("[dash] MEDIUM: c: events wait", "one@x.test, two@x.test")
        assert "100 events" in message.get_content()
        assert box.encrypted == [mode != "smtp+plain"]
        box.refuses = "554 no such thing"
        resolve(conn, settings, LAG.key)
        assert deliver(settings) == Sent(dropped=1)


def test_a_mail_server_that_cannot_be_trusted_or_logged_in_to_gets_nothing_and_is_tried_again(
    migrated: Settings, conn: db.Connection, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with mail_server("smtp", tmp_path, ("dash", "right")) as box:
        for password, ca in (("right", certificate(other)[0]), ("wrong", tmp_path / "cert.pem")):
            url = f"smtp://dash:{password}@localhost:{box.port}"
            mail = Channel(kind="email", url=url, sender="dash@here.test", to=["one@x.test"], ca_file=ca)
            tell(conn, reach(migrated, mail=mail), LAG)
            due_now(conn)
            assert deliver(reach(migrated, mail=mail)) == Sent(failed=1)
        assert box.messages == []
        assert notices.waiting(conn) == {"mail": 1}


# --- the sensor


@pytest.fixture
def environment(in_environment: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """This module's database and the test stack's Kafka, with a chain that nothing else has."""
    registry = tmp_path / "chains.toml"
    registry.write_text('[quietland]\ntitle = "Quietland"\nchain_id = 31337\nblock_time_s = 1.0\n')
    in_environment.setenv("DASH_CHAINS_FILE", str(registry))
    settings_module.settings.cache_clear()
    return in_environment


def test_the_sensor_tells_of_what_it_finds_and_when_it_is_over(
    conn: db.Connection, environment: pytest.MonkeyPatch, migrated: Settings
) -> None:
    letter = db.DeadLetter("quietland.logs", 0, 7, int(time.time() * 1e3), b"{", "not JSON")
    with Receiver() as ops, DagsterInstance.ephemeral() as instance:
        environment.setenv("DASH_NOTIFY_CHANNELS", f'{{"ops": {{"kind": "webhook", "url": "{ops.url}"}}}}')
        environment.setenv("DASH_OWNER_ROUTES", '{"*": ["ops"]}')
        environment.setenv("DASH_ALERT_SECRET", SECRET.get_secret_value())
        settings_module.settings.cache_clear()
        defs = build_defs("lifecycle")
        sensor = defs.resolve_sensor_def("operations_sensor")
        resources = {name: (defs.resources or {})[name] for name in ("kafka", "notifier", "timescale")}

        def tick(cursor: str | None = None) -> Any:
            with build_sensor_context(instance, cursor=cursor, resources=resources) as context:
                return sensor.evaluate_tick(context)

        assert "0 notices hold" in tick().skip_message
        db.write_dead_letters(conn, [letter], "run")
        create_run_for_test(instance, job_name="work", status=DagsterRunStatus.FAILURE)
        tell(conn, settings_module.settings(), Notice("run-failure/work", "medium", "work failed", "why"))
        first = tick()
        assert "1 notices hold, 0 are over; 2 messages sent" in first.skip_message
        again = tick(first.cursor)
        assert "1 notices hold, 0 are over; 0 messages sent" in again.skip_message
        conn.execute("UPDATE ops.dead_letters SET seen_at = seen_at - interval '61 minutes'")
        create_run_for_test(instance, job_name="work", status=DagsterRunStatus.SUCCESS)
        assert "0 notices hold, 2 are over; 2 messages sent" in tick(again.cursor).skip_message
        told = [(request.message["event"], request.message["key"]) for request in ops.requests]
        assert sorted(told) == [
            ("raised", "dead-letters/quietland"),
            ("raised", "run-failure/work"),
            ("resolved", "dead-letters/quietland"),
            ("resolved", "run-failure/work"),
        ]


def test_what_is_over_and_old_is_swept(migrated: Settings, conn: db.Connection) -> None:
    settings = reach(migrated, ops=Channel(kind="webhook", url="http://127.0.0.1:1/"))
    for key in ("lag/old", "lag/open"):
        tell(conn, settings, replace(LAG, key=key))
    resolve(conn, settings, "lag/old")
    conn.execute("UPDATE ops.notices SET resolved_at = resolved_at - interval '31 days'")
    conn.execute("UPDATE ops.notice_deliveries SET queued_at = queued_at - interval '31 days'")
    conn.execute("UPDATE ops.notice_deliveries SET delivered_at = clock_timestamp() WHERE event = 'resolved'")
    assert health.sweep(conn, 30) == {"checkpoints": 0, "notice_deliveries": 1, "notices": 1}
    assert notices.open_titles(conn) == {"lag/open": "c: events wait"}
