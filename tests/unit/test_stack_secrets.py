"""Passwords are made once, kept, and read by nobody else."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from dash_pipeline.errors import DashError
from dash_pipeline.settings import Settings, load_settings
from dash_pipeline.stack import Stack
from dash_pipeline.stack.layout import Layout, Ports
from dash_pipeline.stack.secrets import environment, kept_secrets, read_env, write_env


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout.at(tmp_path / "stack", tmp_path / "opt")
    layout.make()
    return layout


def test_passwords_are_made_once_and_all_differ(layout: Layout) -> None:
    made = kept_secrets(layout)

    assert kept_secrets(layout) == made
    assert len(set(vars(made).values())) == len(vars(made))


def test_lost_passwords_of_existing_data_are_not_made_anew(layout: Layout) -> None:
    kept_secrets(layout)
    (layout.data / "timescale").mkdir()
    (layout.data / "timescale" / "PG_VERSION").write_text("17")
    layout.secrets.unlink()

    with pytest.raises(DashError, match="put it back"):
        kept_secrets(layout)


def test_a_stack_from_before_alerts_gets_their_key_and_keeps_the_rest(layout: Layout) -> None:
    before = vars(kept_secrets(layout))
    layout.secrets.write_text(json.dumps({name: value for name, value in before.items() if name != "alerts"}))

    after = kept_secrets(layout)

    assert after.alerts != before["alerts"]
    assert vars(after) == before | {"alerts": after.alerts}
    assert kept_secrets(layout) == after


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"kafka": "x"}'])
def test_an_unreadable_file_of_passwords_is_named(layout: Layout, text: str) -> None:
    layout.secrets.write_text(text)

    with pytest.raises(DashError, match=r"secrets\.json"):
        kept_secrets(layout)


def test_only_the_owner_reads_them(layout: Layout) -> None:
    write_env(layout, environment(layout, Ports(), kept_secrets(layout)))

    for file in (layout.secrets, layout.env):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_settings_that_a_person_added_are_kept(layout: Layout) -> None:
    write_env(layout, {"DASH_PORT_OFFSET": "0"})
    with layout.env.open("a") as stream:
        stream.write("DASH_MAX_LANES=4\n")

    write_env(layout, {"DASH_PORT_OFFSET": "1000"})
    write_env(layout, {"DASH_PORT_OFFSET": "1000"})

    assert read_env(layout) == {"DASH_PORT_OFFSET": "1000", "DASH_MAX_LANES": "4"}
    assert layout.env.read_text().count("DASH_MAX_LANES") == 1


def test_a_changed_offset_moves_ports_and_keeps_passwords(layout: Layout) -> None:
    before, after = (Stack(layout, Ports(offset)).settings() for offset in (0, 1000))

    assert before.kafka_password == after.kafka_password
    assert (before.kafka_bootstrap, after.kafka_bootstrap) == ("127.0.0.1:19092", "127.0.0.1:20092")


def test_the_stack_is_asked_with_its_own_settings_whatever_the_environment_says(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASH_KAFKA_BOOTSTRAP", "elsewhere:9092")
    monkeypatch.setenv("DASH_MAX_LANES", "7")

    settings = Stack(layout, Ports()).settings()

    assert isinstance(settings, Settings)
    assert settings.kafka_bootstrap == "127.0.0.1:19092"
    assert settings.max_lanes == 7


@pytest.mark.parametrize("quote", ["", "'"])
def test_settings_that_are_json_are_read_from_the_file_as_from_the_environment(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, quote: str
) -> None:
    write_env(layout, environment(layout, Ports(), kept_secrets(layout)))
    with layout.env.open("a") as stream:
        stream.write(f'DASH_ALERT_ROUTES={quote}{{"ops": "https://example.org/a?b=c"}}{quote}\n')
    monkeypatch.setenv("DASH_STACK_DIR", str(layout.home))

    wanted = {"ops": "https://example.org/a?b=c"}

    assert Stack(layout, Ports()).settings().alert_routes == wanted
    assert load_settings().alert_routes == wanted


def test_json_that_is_none_is_one_line(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    write_env(layout, environment(layout, Ports(), kept_secrets(layout)))
    monkeypatch.setenv("DASH_STACK_DIR", str(layout.home))
    monkeypatch.setenv("DASH_ALERT_ROUTES", "ops")
    with pytest.raises(DashError, match=r"^DASH_ALERT_ROUTES: not JSON, .*; set in the environment$"):
        load_settings()
