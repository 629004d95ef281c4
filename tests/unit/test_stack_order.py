"""Which servers a word on the command line stands for, and in which order they come."""

from __future__ import annotations

from pathlib import Path
from string import Template

import pytest

from dash_pipeline.errors import DashError
from dash_pipeline.stack import Stack
from dash_pipeline.stack.servers import SERVERS, STORES
from dash_pipeline.stack.servers.dagster import CODE_LOCATIONS
from dash_pipeline.stack.supervisor import Program


def test_nothing_named_is_everything() -> None:
    assert Stack.resolve([]) == list(SERVERS)


def test_what_a_server_needs_comes_with_it_and_before_it() -> None:
    for name in SERVERS:
        names = Stack.resolve([name])

        for one in names:
            assert all(names.index(need) < names.index(one) for need in SERVERS[one].needs)


def test_a_group_is_its_servers() -> None:
    assert set(Stack.resolve(["stores"])) == {server.name for server in STORES}


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(DashError, match=r"no server postgres; there are: .*timescale"):
        Stack.resolve(["postgres"])


def test_the_offset_is_the_argument_then_the_environment_then_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "env").write_text("DASH_PORT_OFFSET=3000\n")
    monkeypatch.delenv("DASH_PORT_OFFSET", raising=False)
    assert Stack.at(tmp_path).ports.offset == 3000

    monkeypatch.setenv("DASH_PORT_OFFSET", "2000")
    assert Stack.at(tmp_path).ports.offset == 2000
    assert Stack.at(tmp_path, 1000).ports.offset == 1000

    monkeypatch.setenv("DASH_PORT_OFFSET", "many")
    with pytest.raises(DashError, match="DASH_PORT_OFFSET=many is not a number"):
        Stack.at(tmp_path)


def test_the_workspace_names_the_code_locations_that_are_started() -> None:
    workspace = (Path(__file__).parents[2] / "workspace.yaml").read_text()

    assert workspace.count("grpc_server:") == len(CODE_LOCATIONS)
    for name in CODE_LOCATIONS:
        assert f"location_name: {name}\n" in workspace
        assert Template("port: { env: DASH_CODE_${name}_PORT }").substitute(name=name.upper()) in workspace


def test_a_program_section_survives_percent_signs() -> None:
    section = Program("p", ["/bin/sh", "a b%c"], {"URL": "x%20y"}).ini(Path("/logs"))

    assert 'command="/bin/sh" "a b%%c"' in section
    assert 'environment=URL="x%%20y"' in section
