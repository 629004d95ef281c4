"""Notices without servers: settings, routes, when something is told, what each channel shows."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from dash_pipeline.errors import DashError
from dash_pipeline.notify.notice import Notice, channels_of, headline, mail, slack
from dash_pipeline.notify.tell import event_of
from dash_pipeline.settings import load_settings
from dash_pipeline.storage.notices import Open

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOTICE = Notice("lag/c", "high", "c:\n<many> events", "a & b\nmore", "team:x", {"UI": "http://ui/?a=1&b=2"})


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("NOTIFY_CHANNELS", "{", "not JSON"),
        ("NOTIFY_CHANNELS", '{"a": {"kind": "fax", "url": "http://x"}}', "a: kind: input should be 'webhook', 'slack'"),
        ("NOTIFY_CHANNELS", '{"a": {"kind": "slack", "url": "smtp://x"}}', "a: its url is no http:// or https://"),
        ("NOTIFY_CHANNELS", '{"a": {"kind": "webhook", "url": "http://u:secret@x:port"}}', "a: its url is no http://"),
        ("NOTIFY_CHANNELS", '{"a": {"kind": "email", "url": "smtp://x"}}', "a: an e-mail channel needs sender and to"),
        ("NOTIFY_CHANNELS", '{"a": {"kind": "email", "url": "smtp://x", "sender": "a@b", "to": ["b"]}}', "a: to: 0:"),
        ("OWNER_ROUTES", '{"team:x": ["nobody"]}', "team:x: DASH_NOTIFY_CHANNELS has no nobody"),
        ("FAILURES_IN_ROW", '{"job": 0}', "job: input should be greater than or equal to 1"),
        ("METRICS_PUSH_URL", "gateway:9091", "string should match pattern"),
    ],
)
def test_a_wrong_setting_is_one_line_without_its_secrets(
    environment: pytest.MonkeyPatch, name: str, value: str, line: str
) -> None:
    environment.setenv(f"DASH_{name}", value)
    with pytest.raises(DashError) as caught:
        load_settings()
    assert str(caught.value).startswith(f"DASH_{name}: ")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_settings_do_not_show_the_addresses(environment: pytest.MonkeyPatch) -> None:
    channels = {"a": {"kind": "webhook", "url": "http://user:hidden@x"}}
    environment.setenv("DASH_NOTIFY_CHANNELS", json.dumps(channels))
    found = load_settings()
    assert found.notify_channels["a"].url == "http://user:hidden@x"
    assert "hidden" not in f"{found!r} {found.notify_channels!r}"


@pytest.mark.parametrize(
    ("owner", "channels"), [("team:x", ["chat", "mail"]), ("team:y", ["all"]), ("*", ["all"]), ("team:z", [])]
)
def test_notices_go_to_their_owner(owner: str, channels: list[str]) -> None:
    routes = {"team:x": ["chat", "mail", "chat"], "team:z": [], "*": ["all"]}
    assert channels_of(owner, routes) == channels
    assert channels_of(owner, {}) == []


@pytest.mark.parametrize(
    ("before", "event"),
    [
        (None, "raised"),
        (Open("high", NOW, NOW), "raised"),
        (Open("medium", NOW, None), "raised"),
        (Open("high", NOW - timedelta(seconds=59), None), None),
        (Open("high", NOW - timedelta(seconds=60), None), "repeated"),
    ],
)
def test_a_condition_is_told_when_it_is_new_worse_or_long_there(before: Open | None, event: str | None) -> None:
    assert event_of(before, "high", NOW, repeat_s=60) == event


def test_slack_shows_text_as_text() -> None:
    shown = slack(NOTICE.document("raised"))
    assert shown["text"] == "HIGH: c: &lt;many&gt; events"
    (attachment,) = shown["attachments"]
    assert attachment["text"] == "a &amp; b\nmore\n<http://ui/?a=1&amp;b=2|UI>"


def test_a_mail_has_one_line_of_subject_and_the_same_id_each_time() -> None:
    one, two = (mail(NOTICE.document("repeated"), "dash@x", ["a@x", "b@x"], "id1") for _ in range(2))
    assert one["Subject"] == "[dash] STILL HIGH: c: <many> events"
    assert one["Message-ID"] == two["Message-ID"] == "<id1@dash-pipeline>"
    assert one.get_content().splitlines()[:4] == ["a & b", "more", "", "UI: http://ui/?a=1&b=2"]
    assert headline(NOTICE.document("resolved")) == "RESOLVED: c: <many> events"
