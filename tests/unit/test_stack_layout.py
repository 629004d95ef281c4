"""Where a stack lies: ports that never meet, and sockets whose path the kernel takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from dash_pipeline.errors import DashError
from dash_pipeline.stack import Stack
from dash_pipeline.stack.layout import PORTS, Layout, Ports
from dash_pipeline.stack.secrets import environment, kept_secrets, write_env

# The kernel's limit for a UNIX socket, less what PostgreSQL and supervisord put behind the folder.
LONGEST = 108 - len("/pg/.s.PGSQL.15432.lock") - 1


def test_stacks_whose_offsets_are_different_thousands_share_no_port() -> None:
    stacks = [Ports(offset) for offset in (0, 1000, 2000, 10_000)]

    ports = [stack[name] for stack in stacks for name in PORTS]

    assert len(set(ports)) == len(ports)


@pytest.mark.parametrize("offset", [-15_000, 60_000])
def test_an_offset_that_leaves_the_range_of_ports_is_refused(offset: int) -> None:
    with pytest.raises(DashError, match=f"DASH_PORT_OFFSET={offset}"):
        Ports(offset)


def test_a_stack_keeps_the_address_it_was_made_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASH_STACK_HOST", "10.1.2.3")
    (tmp_path / "env").write_text("")
    first = Stack.at(tmp_path)
    write_env(first.layout, environment(first.layout, first.ports, kept_secrets(first.layout)))
    monkeypatch.delenv("DASH_STACK_HOST")

    found = Stack.at(tmp_path)

    assert found.ports.host == "10.1.2.3"
    assert found.settings().kafka_bootstrap == "10.1.2.3:19092"
    assert "127.0.0.1" not in found.layout.env.read_text()


def test_a_short_folder_holds_its_own_sockets(tmp_path: Path) -> None:
    layout = Layout.at(Path("/srv/dash/.stack"), tmp_path)

    assert layout.sockets == layout.run


def test_a_long_folder_gets_short_sockets_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/tmp")
    layouts = [Layout.at(tmp_path / (letter * 100), tmp_path) for letter in "ab"]

    sockets = [layout.sockets for layout in layouts]

    assert sockets[0] != sockets[1]
    assert all(len(str(folder)) <= LONGEST for folder in sockets)


def test_the_environment_chooses_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASH_STACK_DIR", str(tmp_path / "stack"))
    monkeypatch.setenv("DASH_OPT_DIR", str(tmp_path / "shared"))

    layout = Layout.at()

    assert (layout.home, layout.opt) == (tmp_path / "stack", tmp_path / "shared")
