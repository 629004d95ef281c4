"""The commands that pages show, to be run by tests: one way for every page.

A fenced block of `sh` is run, all blocks of a page in their order, in one shell. What cannot be run in a test has a
line before it that says why: `<!-- not run: takes a cluster of yours -->`. Of those, and of commands in the middle of a
sentence, it is checked that commands and options exist.

Belongs here: finding commands, checking them, running them. Does not belong here: the servers they are run on.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer.main

from dash_pipeline.cli import app
from dash_pipeline.stack import Stack
from dash_pipeline.stack.layout import PORTS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "guides").glob("*.md")),
    *sorted((ROOT / "deployments").glob("*/README.md")),
]

_BLOCK = re.compile(r"^(?:<!-- not run: (?P<reason>[^\n]+?) -->\n)?```sh\n(?P<text>.*?)^```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """Commands of a page, the line they begin at, and why a test cannot run them, if it cannot."""

    page: Path
    line: int
    text: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, section: str = "") -> list[Block]:
    """A page's blocks of commands; with `section`, a heading with its #s, only those up to the next heading."""
    text = page.read_text()
    start = text.index(f"{section}\n") if section else 0
    level = len(section) - len(section.lstrip("#"))
    found = re.compile(rf"^#{{1,{level}}} ", re.MULTILINE).search(text, start + len(section)) if section else None
    end = found.start() if found else len(text)
    return [
        Block(page, text.count("\n", 0, match.start("text")) + 1, match["text"], match["reason"])
        for match in _BLOCK.finditer(text)
        if start <= match.start() < end
    ]


def lines(text: str) -> Iterator[str]:
    """The lines of a block that are commands of ours or of make: without variables before them, and without what is
    behind: comments, and where their output goes."""
    for line in text.replace("\\\n", " ").splitlines():
        command = re.sub(r"^(?:[A-Z_]+=(?:'[^']*'|\S*) +)*", "", line.strip())
        if command.startswith(("dash-pipeline ", "make ")):
            yield re.sub(r" (?:>>?|\|) .*", "", command)


def inline(page: Path) -> list[str]:
    """Commands of ours that stand in a page's sentences and tables. On operations.md they stand without our name."""
    found = []
    for span in _INLINE.findall(re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)):
        first = span.split()[0] if span.split() else ""
        if first == "dash-pipeline" and span != first:
            found.append(span)
        elif page.name == "operations.md" and first in _commands() and (" " in span or first in _OWN_NAMES):
            found.append(f"dash-pipeline {span}")
    return found


def problem(command: str, *, mentioned: bool = False) -> str | None:
    """What is wrong with a command's name or options, in a line; None if it could be run. Upper-case words stand for
    what a reader fills in, `...` for more of the same, brackets for what may be left out. A command that is only
    `mentioned` in a sentence may lack its arguments."""
    words = shlex.split(re.sub(r"\[(-.*?)\]", r"\1", command), comments=True)
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        return None if {word for word in words[1:] if "=" not in word} <= targets else f"{command}: no such target"
    node, name, rest = typer.main.get_command(app), words[0], [word for word in words[1:] if word != "..."]
    while rest and hasattr(node, "commands"):
        if rest[0] == "--help":
            return None
        if rest[0] not in node.commands:
            return f"{command}: there is no {name} {rest[0]}"
        node, name, rest = node.commands[rest[0]], f"{name} {rest[0]}", rest[1:]
    try:
        node.make_context(name, _filled_in(node, rest))
    except Exception as error:  # typer has click's errors under names of its own
        if type(error).__name__ in ("Exit", "NoArgsIsHelpError"):
            return None
        if mentioned and not rest and "missing" in str(error).lower():
            return None
        return f"{command}: {error}"
    return None


def run(stack: Stack, commands: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a page's commands in one shell, at the clone's top, on these servers; the first that fails ends it. Addresses
    are a page's, with the ports of a stack without an offset."""
    for name, port in PORTS.items():
        commands = re.sub(rf"\b127\.0\.0\.1:{port}\b", stack.ports.at(name), commands)
    variables = os.environ | {
        "DASH_STACK_DIR": str(stack.layout.home),
        "DASH_OPT_DIR": str(stack.layout.opt),
        "STACK": str(stack.layout.home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **(environment or {}),
    }
    return subprocess.run(
        ["sh", "-evc", commands], cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )


def _filled_in(node: Any, words: list[str]) -> list[str]:
    """Placeholders for options that take a choice, a number or a day, replaced by what the option takes."""
    return [re.sub(r"^(TIME|URL|FOLDER|INDEX)$", "2026-01-01", word) for word in words]


@cache
def _commands() -> frozenset[str]:
    return frozenset(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


# Commands whose bare name in a sentence of operations.md means the command.
_OWN_NAMES = frozenset({"status", "backup", "drill", "down", "reset", "alerts", "restore-topics"})
