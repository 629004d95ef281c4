"""Every command that a page shows exists, is run by a test, or says why it is not; every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.commands import PAGES, ROOT, Block, blocks, inline, lines, problem

#: Pages whose blocks are run, and the test that does it.
RUN_BY = {
    "docs/tutorial.md": "tests/e2e/test_5_docs.py",
    "docs/api.md": "tests/e2e/test_5_docs.py",
    "docs/guides": "tests/e2e/test_5_docs.py",
    "docs/operations.md": "tests/integration/test_backups_runbook.py",
}
_PROGRAMS = ("dash-pipeline", "make", "git", "kubectl", "helm", "docker", "curl", "python", "sudo", "export")


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks(page)]


def test_every_command_and_its_options_exist() -> None:
    found = [(str(block), problem(command)) for block in all_blocks() for command in lines(block.text)]
    found += [
        (str(page.relative_to(ROOT)), problem(command, mentioned=True)) for page in PAGES for command in inline(page)
    ]
    assert len(found) > 80
    assert [f"{where}: {wrong}" for where, wrong in found if wrong] == []


@pytest.mark.parametrize(
    "command",
    ["dash-pipeline rest", "dash-pipeline alerts --loud", "dash-pipeline search top --size many", "make tea",
     "dash-pipeline alerts --severity awful", "dash-pipeline score"],
)  # fmt: skip
def test_a_wrong_command_is_found(command: str) -> None:
    assert problem(command)


def test_what_is_not_run_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    """The list of what no test runs is printed: `pytest -s` shows it."""
    unrun = [block for block in all_blocks() if block.reason]
    for block in unrun:
        print(f"{block}: {block.reason}")
    silent = [str(block) for block in all_blocks() if not block.reason and not str(block).startswith(tuple(RUN_BY))]
    assert silent == [], "run them, or say why not"


def test_commands_stand_in_blocks_of_sh() -> None:
    """Not indented, and not in a block of another language: the tests above would not see them."""
    missed = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        indented = re.findall(rf"^    (?:\$ )?(?:{'|'.join(_PROGRAMS)}) .*", text, re.MULTILINE)
        missed += [f"{page.name}: {line}" for line in indented]
    assert missed == []


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_links_between_pages_and_to_files_lead_somewhere() -> None:
    """Made at build time: what is in reference/generated. Other sites are not asked."""
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if re.match(r"[a-z]+:", target) or "reference/generated/" in target:
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / unquote(path)).resolve() if path else page
            if not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []
