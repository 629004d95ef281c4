"""deployments/docker/compose.yaml, read but not run: what Docker would refuse late, and what must never be in it."""

from __future__ import annotations

import copy
import re
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values

from dash_pipeline.settings import PREFIX, Settings, load_settings
from dash_pipeline.stack.servers.dagster import CODE_LOCATIONS
from tests.conftest import ROOT

DOCKER = ROOT / "deployments" / "docker"
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+):\?run env\.sh\}")
SECRET = re.compile(r"PASSWORD|SECRET|_KEY|DSN|JAAS")


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What env.sh writes."""
    folder = tmp_path_factory.mktemp("docker")
    for name in ("env.sh", ".env.example"):
        shutil.copy(DOCKER / name, folder)
    subprocess.run([folder / "env.sh"], check=True)
    first = (folder / ".env").read_text()
    assert stat.S_IMODE((folder / ".env").stat().st_mode) == 0o600
    subprocess.run([folder / "env.sh"], check=True, capture_output=True)
    assert (folder / ".env").read_text() == first, "servers know these passwords"
    return {name: value or "" for name, value in dotenv_values(folder / ".env").items()}


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    """The file as it is written."""
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def services(env: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The services with the variables filled in."""
    text = VARIABLE.sub(lambda match: env[match[1]], (DOCKER / "compose.yaml").read_text())
    assert not re.search(r"(?<!\$)\$[{\w]", text), "a variable without `:?run env.sh` would be empty without a word"
    return yaml.safe_load(text)["services"]


def test_every_variable_is_in_the_example_and_used(env: dict[str, str]) -> None:
    assert set(VARIABLE.findall((DOCKER / "compose.yaml").read_text())) == set(env)
    assert all(len(value) >= 32 for value in env.values())
    assert len(set(env.values())) == len(env)
    assert not any((dotenv_values(DOCKER / ".env.example")).values())


def test_no_secret_is_written_in_it(written: dict[str, Any]) -> None:
    for name, service in written["services"].items():
        for variable, value in service.get("environment", {}).items():
            if SECRET.search(variable):
                assert VARIABLE.search(value), f"{name}: {variable}"
    assert ".env" in (ROOT / ".gitignore").read_text()


def test_every_service_is_pinned_restarted_limited_and_asked(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert "build" in service or re.search(r":\d+\.\d+", service["image"]), name
        assert service["restart"] in ("unless-stopped", "on-failure:3"), name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}, name
        assert "no-new-privileges:true" in service["security_opt"], name
        # The one that ends is waited for by its end.
        assert ("healthcheck" in service) == (name != "prepare"), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_what_is_named_is_there(written: dict[str, Any], services: dict[str, dict[str, Any]]) -> None:
    volumes = set()
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            ends = how["condition"] == "service_completed_successfully"
            assert ends == (needed == "prepare"), name
            assert needed in services, name
        for source in (volume.partition(":")[0] for volume in service.get("volumes", [])):
            if source.startswith("."):
                assert (DOCKER / source).is_file(), f"{name}: {source}"
            else:
                volumes.add(source)
    assert volumes == set(written["volumes"])


def test_platform_services_are_unprivileged_and_alike(services: dict[str, dict[str, Any]]) -> None:
    ours = {name: service for name, service in services.items() if service["image"] == "dash-pipeline"}
    assert set(ours) == {
        "prepare",
        "webserver",
        "api",
        "daemon",
        "metrics",
        *(f"code-{name}" for name in CODE_LOCATIONS),
    }
    for name, service in ours.items():
        assert service["build"]["dockerfile"] == "deployments/docker/Dockerfile", name
        assert (DOCKER / service["build"]["context"]).resolve() == ROOT, name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert not {"privileged", "user", "network_mode", "pid"} & set(service), name
        assert service["environment"].items() >= services["prepare"]["environment"].items(), name


def test_settings_load_from_the_environment(
    services: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment = services["prepare"]["environment"]
    others = {f"{PREFIX}CODE_{name.upper()}_{part}" for name in CODE_LOCATIONS for part in ("HOST", "PORT")}
    ours = {name for name in environment if name.startswith(PREFIX)} - others
    assert {name.removeprefix(PREFIX).lower() for name in ours} <= set(Settings.model_fields)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DASH_STACK_DIR", str(tmp_path))
    settings = load_settings()
    assert settings.kafka_bootstrap in services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert settings.kafka_password
    assert settings.kafka_password.get_secret_value() in str(services["kafka"]["environment"])
    assert settings.opensearch_password
    password = services["opensearch"]["environment"]["OPENSEARCH_INITIAL_ADMIN_PASSWORD"]
    assert settings.opensearch_password.get_secret_value() == password
    assert re.search("[A-Z]", password)
    assert re.search("[^A-Za-z0-9]", password)
    assert f"-bucket={settings.s3_bucket}" in services["s3"]["command"]
    assert len(environment["DASH_ENCRYPTION_KEYS"]) > 44


def test_the_workspace_finds_every_code_location(services: dict[str, dict[str, Any]]) -> None:
    environment = services["webserver"]["environment"]
    for one in yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]:
        server = one["grpc_server"]
        service = services[environment[server["host"]["env"]]]
        assert service["environment"]["LOCATION"] == server["location_name"]
        assert f"--port {environment[server['port']['env']]} " in service["command"][2]


def test_the_instance_is_that_of_the_local_stack_but_for_addresses() -> None:
    here = yaml.safe_load((DOCKER / "dagster.yaml").read_text())
    there = yaml.safe_load((ROOT / "deployments" / "local" / "dagster" / "dagster.yaml").read_text())
    moved = copy.deepcopy(there)
    moved["storage"]["postgres"]["postgres_db"] |= {"hostname": "timescale", "port": 5432}
    moved["compute_logs"]["config"]["local_dir"] = "/tmp/dagster-logs"
    assert here == moved != there


@pytest.mark.parametrize(
    ("name", "port"), [("code-ingestion", "4000"), ("webserver", "3000"), ("api", "8080"), ("metrics", "9465")]
)
def test_a_health_check_fails_without_a_server(services: dict[str, dict[str, Any]], name: str, port: str) -> None:
    _, _, option, program = services[name]["healthcheck"]["test"]
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        moved = program.replace(port, str(silent.getsockname()[1]))
        done = subprocess.run([sys.executable, option, moved], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "refused" in done.stderr, "it came as far as the connection"
