"""The documentation's site builds without a warning, and its reference has what the code has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dash_pipeline.settings import PREFIX, Settings
from dash_pipeline.storage.tables import HISTORIES
from dash_pipeline.topics import wanted
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does, from nothing."""
    built = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "-b", "html",
         "-d", str(built / "doctrees"), str(ROOT / "docs"), str(built / "html")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return built / "html"


def test_every_page_is_there_and_brings_what_it_needs(site: Path) -> None:
    for page in ("index", "tutorial", "architecture", "operations", "data-dictionary", "guides/new-chain", "diagrams"):
        text = (site / f"{page}.html").read_text()
        assert '<script src="http' not in text
        assert '<link rel="stylesheet" href="http' not in text


def test_the_reference_has_what_the_code_has(site: Path) -> None:
    reference = site / "reference" / "generated"
    settings = (reference / "settings.html").read_text()
    assert [name for name in Settings.model_fields if f"{PREFIX}{name.upper()}" not in settings] == []
    topics = (reference / "topics.html").read_text().replace("&lt;", "<").replace("&gt;", ">")
    assert [topic for topic in wanted(["<chain>"]) if topic not in topics] == []
    commands = (reference / "commands.html").read_text()
    assert "dash-pipeline archive derive" in commands
    assert "--min-liquidity" in commands
    assets = (reference / "assets.html").read_text()
    assert [table for table in HISTORIES if f"anvil/{table}" not in assets and table not in assets] == []
    tables = (site / "data-dictionary.html").read_text()
    assert [name for table in HISTORIES.values() for name in table.columns if f">{name}<" not in tables] == []


def test_diagrams_are_drawn_from_the_definitions(site: Path) -> None:
    drawn = (site / "_images" / "groups.svg").read_text()
    for group in (
        "topics",
        "anvil",
        "search",
        "staging",
        "marts",
        "models",
        "intelligence",
        "archive",
        "lifecycle",
    ):
        assert f">{group}</text>" in drawn
    starts = (site / "_images" / "starts.svg").read_text()
    for name in ("lag_sensor", "ingest_anvil", "weekly_drill", "restore_drill"):
        assert f">{name}</text>" in starts


def test_every_setting_says_what_it_means() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
