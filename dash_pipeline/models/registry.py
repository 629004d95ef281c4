"""Models on S3: versions that never change, and a pointer to the one that scores.

Belongs here: keys, and the order in which they are written. Does not belong here: when a version is good enough to be
promoted (`training.py`), keeping it in memory (`champions.py`).

    models/<model>/hashes/<sha256>                          the version that has this content
    models/<model>/versions/<version>/model.bin             the artifact
    models/<model>/versions/<version>/plots/<name>.png      its card's pictures
    models/<model>/versions/<version>/card.json             its card; written last
    models/<model>/champion.json                            which version scores, and which did before

A version without its card is incomplete: it is not listed, loaded or promoted, and saving the same artifact again
completes it. The pointer is replaced only if it is still what was read: of two promotions at once, one wins.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from dash_pipeline.errors import DashError
from dash_pipeline.models.artifact import Artifact
from dash_pipeline.settings import Settings
from dash_pipeline.storage import s3

log = logging.getLogger(__name__)

_VERSION = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{12}")
# So many former champions are remembered.
_REMEMBERED = 100
# What `expect` is when whatever is champion now may be replaced.
_ANY = "*"


class Term(msgspec.Struct, frozen=True):
    """A version's time as champion: since when (UTC, ISO 8601), made so by whom. `restored`: by a roll-back, not by a
    promotion."""

    version: str
    sha256: str
    promoted_at: str
    by: str
    restored: bool = False


class Champion(msgspec.Struct, frozen=True):
    """The pointer: the version that scores, and the terms before this one, newest first."""

    version: str
    sha256: str
    promoted_at: str
    by: str
    restored: bool = False
    previous: tuple[Term, ...] = ()

    def terms(self) -> tuple[Term, ...]:
        """This term and those before it."""
        return (Term(self.version, self.sha256, self.promoted_at, self.by, self.restored), *self.previous)


class Version(msgspec.Struct, frozen=True):
    """A version's card: `sha256` and `bytes` of its artifact, when it was saved (UTC, ISO 8601), its pictures' names, and
    what training wrote down (data, parameters, metrics, importance)."""

    model: str
    version: str
    sha256: str
    bytes: int
    saved_at: str
    plots: tuple[str, ...]
    card: dict[str, Any]


@dataclass(frozen=True)
class Registry:
    """The models of a bucket. Methods raise Unavailable when S3 does not answer."""

    settings: Settings
    bucket: s3.Bucket = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.bucket is None:
            object.__setattr__(self, "bucket", s3.bucket(self.settings))
