"""Whom PostgreSQL runs as: it refuses to be root.

Belongs here: choosing that user, and handing files over. Does not belong here: starting servers (`stack/`, `backups/`).
"""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import dash_pipeline
from dash_pipeline.errors import DashError


@dataclass(frozen=True)
class User:
    """`command` runs what follows it as this user; without numbers it is the user that we are."""

    command: tuple[str, ...] = ()
    uid: int | None = None
    gid: int | None = None

    def owns(self, *paths: Path) -> None:
        """Hand files and folders (with all that is in them) over to this user."""
        if self.uid is None or self.gid is None:
            return
        for path in paths:
            if path.stat().st_uid != self.uid:
                for one in [path, *path.rglob("*")]:
                    os.chown(one, self.uid, self.gid)


def unprivileged(home: Path) -> User:
    """This user, unless it is root; then `postgres` or `nobody` where they can reach `home`, and the Python and the
    package that PostgreSQL calls to archive its log.

    Where they cannot (a clone or a Python under /root), root in a user namespace in which it has another number. Raises
    DashError where there are no user namespaces either.
    """
    if os.getuid() != 0:
        return User()
    account = next(entry for name in ("postgres", "nobody") for entry in _accounts(name))
    needed = (home, Path(sys.executable), Path(sys.executable).resolve(), Path(dash_pipeline.__file__).resolve())
    if all(folder.stat().st_mode & stat.S_IXOTH for path in needed for folder in (path, *path.parents)
           if folder.is_dir()):  # fmt: skip
        identity = (f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups")
        return User(("setpriv", *identity), account.pw_uid, account.pw_gid)
    mapped = (f"--map-user={account.pw_uid}", f"--map-group={account.pw_gid}")
    if subprocess.run(["unshare", "--user", *mapped, "true"], capture_output=True, check=False).returncode != 0:
        raise DashError(
            f"PostgreSQL does not run as root, and {account.pw_name} cannot reach {home}, {sys.executable} or the"
            " repository: set DASH_STACK_DIR to a folder that others may enter, and have the clone in one"
        )
    return User(("unshare", "--user", *mapped), 0, 0)


def _accounts(name: str) -> list[pwd.struct_passwd]:
    try:
        return [pwd.getpwnam(name)]
    except KeyError:
        return []
