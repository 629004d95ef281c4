"""The tutorial and the guides, as they are written, on the platform that has gone through the demo."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from dash_pipeline.demo import Outcome
from dash_pipeline.stack import Stack
from tests.commands import PAGES, ROOT, blocks, inline, run

GUIDES = [page for page in PAGES if page.name in ("tutorial.md", "api.md") or page.parent.name == "guides"]

#: Commands in sentences that are not run here, and why.
NOT_RUN = {
    "api": "runs until it is stopped; the platform has one",
    "api --host 0.0.0.0 --port 8080": "runs until it is stopped; the platform has one",
    "metrics": "runs until it is stopped; tests/integration/test_metrics.py asks it",
    "up": "the platform is up",
    "down": "other tests use the platform",
    "reset": "other tests use the platform",
    "feed": "without anything to feed it is a name",
    "archive derive": "guides/backfill.md runs it",
    "archive rotate": "needs a second key; tests/integration/test_encryption.py does it",
    "archive run": "nothing is due; tests/integration/test_archive.py does it",
    "backup": "guides/restore.md runs it",
    "backup --full": "operations.md's own block has it",
    "drill": "operations.md's own block has it",
    "search restore": "takes the indexes back; tests/integration/test_search_backups.py does it",
    "search snapshot": "operations.md's own block has it",
    "search rebuild transactions": "operations.md's own block has it",
    "search rebuild": "a name only",
    "query": "a name only",
    "score": "a name only",
    "archive anomalies": "guides/new-detector.md runs it",
    "restore-topics": "no topic is lost; tests/integration/test_kafka_backups.py does it",
    "models rollback pool_risk": "there is no earlier champion",
}


def simple() -> list[str]:
    """Commands in sentences that have nothing to fill in."""
    spans = {span.removeprefix("dash-pipeline ") for page in PAGES for span in inline(page)}
    return sorted(span for span in spans if not re.search(r"\.\.\.|[<\[]|\b20\d\d-|\b(?!SELECT|FROM)[A-Z]{3,}\b", span))


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_work_in_their_order(platform: Stack, outcome: Outcome, page: Path) -> None:
    assert outcome.agrees
    done = run(platform, "".join(block.text for block in blocks(page) if not block.reason))
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_the_tutorial_shows_what_it_says(platform: Stack, outcome: Outcome) -> None:
    """The pool and the wallet that it names are the first alert's."""
    text = (ROOT / "docs" / "tutorial.md").read_text()
    assert any(alert["pool"] in text and alert["wallets"][0] in text for alert in outcome.alerts)


def test_commands_in_sentences_work(platform: Stack, outcome: Outcome) -> None:
    commands = simple()
    assert set(NOT_RUN) <= set(commands), "what no page says any more needs no reason"
    wanted = [command for command in commands if command not in NOT_RUN]
    assert len(wanted) >= 8
    program = Path(sys.executable).with_name("dash-pipeline")
    done = run(platform, "".join(f"{shlex.quote(str(program))} {command}\n" for command in wanted))
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
