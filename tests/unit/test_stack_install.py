"""Installing: once, again when the inputs change, and with one line that says what went wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dash_pipeline.errors import DashError
from dash_pipeline.stack import install


def test_it_is_built_once_for_the_same_inputs(tmp_path: Path) -> None:
    built: list[Path] = []

    first = install.once(tmp_path, "thing", ["1"], built.append)
    again = install.once(tmp_path, "thing", ["1"], built.append)
    other = install.once(tmp_path, "thing", ["2"], built.append)

    assert first == again != other
    assert built == [first, other]


def test_a_half_built_folder_is_built_anew(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise DashError("the network is gone")

    with pytest.raises(DashError):
        install.once(tmp_path, "thing", ["1"], fail)

    folder = install.once(tmp_path, "thing", ["1"], lambda folder: (folder / "whole").touch())

    assert sorted(path.name for path in folder.iterdir()) == [".complete", "whole"]


def test_a_failed_command_is_one_line_with_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"

    with pytest.raises(DashError) as failed:
        install.call([sys.executable, "-c", "print('no such package\\n'); exit(7)"], log)

    assert str(failed.value).splitlines() == [
        f"{Path(sys.executable).name} ended with 7: no such package (all of it: {log})"
    ]


def test_of_maven_the_first_error_is_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("+ mvn\n[ERROR] old\n+ mvn\n\x1b[1m[ERROR] no such jar\x1b[m\n[ERROR] re-run with -X\n\x1b[0m\n")

    assert install.last_line(log) == "[ERROR] no such jar"


def test_arguments_that_are_secret_are_not_logged(tmp_path: Path) -> None:
    log = tmp_path / "log"

    install.call(["/bin/echo", "-n", "password"], log, secret=True)

    assert log.read_text() == "+ /bin/echo\npassword"


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ('openjdk version "25.0.2" 2026-01-20 LTS', 25),
        ('openjdk version "1.8.0_392"', 1),
        ("not java", 0),
    ],
)
def test_the_version_of_a_java_is_what_it_says(tmp_path: Path, said: str, version: int) -> None:
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\necho '{said}' >&2\n")
    java.chmod(0o755)

    assert install.java_version(java) == version


def test_a_java_that_is_not_there_has_no_version(tmp_path: Path) -> None:
    assert install.java_version(tmp_path / "java") == 0
