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
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.models.artifact import Artifact
from dash_pipeline.settings import Settings
from dash_pipeline.storage import s3

log = logging.getLogger(__name__)

_VERSION = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{12}")
# So many former champions are remembered.
_REMEMBERED = 100
# What `expect` is when whatever is champion now may be replaced.
_ANY = "*"
_SEE_LIST = "`dash-pipeline models list` shows what is there"

_T = TypeVar("_T")


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
    """A version's card: `sha256` and `bytes` of its artifact, when it was saved (UTC, ISO 8601), its pictures' names,
    and what training wrote down (data, parameters, metrics, importance)."""

    model: str
    version: str
    sha256: str
    bytes: int
    saved_at: str
    plots: tuple[str, ...]
    card: dict[str, Any]


class Registry:
    """The models in the bucket of the settings. Every method raises Unavailable when S3 does not answer."""

    def __init__(self, settings: Settings) -> None:
        self._bucket = s3.bucket(settings)

    # ------------------------------------------------------------------------------------------ versions

    def save(self, artifact: Artifact, plots: Mapping[str, bytes]) -> str:
        """Keep an artifact and its pictures (name -> PNG); returns its version: the time, UTC, and the first 12 digits
        of its hash. An artifact that is there already keeps its version, and its pictures."""
        data = artifact.to_bytes()
        sha256, now = hashlib.sha256(data).hexdigest(), datetime.now(UTC)
        version = self._claim(artifact.model, sha256, f"{now:%Y%m%dT%H%M%SZ}-{sha256[:12]}")
        folder = _folder(artifact.model, version)
        card = Version(
            artifact.model, version, sha256, len(data), now.isoformat(), tuple(sorted(plots)), dict(artifact.card)
        )
        objects = {f"{folder}/plots/{name}.png": png for name, png in plots.items()}
        for key, content in {f"{folder}/model.bin": data, **objects, f"{folder}/card.json": _json(card)}.items():
            try:
                self._bucket.put(key, content, new=True)
            except s3.Conflict:
                continue  # an earlier save got that far
        return version

    def _claim(self, model: str, sha256: str, version: str) -> str:
        """The version of this content: the one given, unless it has one."""
        key = f"models/{model}/hashes/{sha256}"
        try:
            self._bucket.put(key, version.encode(), new=True)
        except s3.Conflict:
            return (self._bucket.get(key) or version.encode()).decode()
        return version

    def versions(self, model: str) -> list[Version]:
        """Every complete version, newest first."""
        keys = self._bucket.keys(f"models/{model}/versions/")
        found = []
        for key in reversed([key for key in keys if key.endswith("/card.json")]):
            try:
                found.append(self._card(model, key.split("/")[-2]))
            except Unavailable:
                raise
            except DashError as error:
                log.error("%s", error)
        return found

    def version(self, model: str, version: str) -> Version:
        """A version's card. Raises DashError when there is no such version."""
        return self._card(model, version)

    def plots(self, model: str, version: str) -> dict[str, bytes]:
        """A version's pictures, name -> PNG. Raises DashError when there is no such version."""
        names = self._card(model, version).plots
        found = {name: self._bucket.get(f"{_folder(model, version)}/plots/{name}.png") for name in names}
        return {name: png for name, png in found.items() if png is not None}

    def load(self, model: str, version: str) -> Artifact:
        """A version's artifact. Raises DashError when there is no such version, and when its content is not what its
        hash says."""
        return self._artifact(model, version, self._card(model, version).sha256)

    def _artifact(self, model: str, version: str, sha256: str) -> Artifact:
        data = self._bucket.get(f"{_folder(model, version)}/model.bin")
        if data is None:
            raise DashError(f"{model} {version}: model.bin is gone from the bucket; {_SEE_LIST}")
        artifact = Artifact.from_bytes(data, sha256, f"{model} {version}")
        if artifact.model != model:
            raise DashError(f"{model} {version}: the object is a model of {artifact.model}; not loaded")
        return artifact

    def _card(self, model: str, version: str) -> Version:
        key = f"{_folder(model, version)}/card.json"
        data = self._bucket.get(key) if _VERSION.fullmatch(version) else None
        if data is None:
            raise DashError(f"{model}: there is no version {version}; {_SEE_LIST}")
        return _decoded(data, Version, key)

    # ------------------------------------------------------------------------------------------ the champion

    def champion(self, model: str) -> Champion | None:
        """The version that scores; None before the first promotion. Raises DashError when the pointer is damaged."""
        return self.look(model, None)[1]

    def look(self, model: str, known: s3.Object | None) -> tuple[s3.Object | None, Champion | None]:
        """The pointer's object and what it says. The object is `known` itself when it has not changed since."""
        key = _pointer(model)
        found = self._bucket.read(key, known)
        return found, _decoded(found.data, Champion, key) if found else None

    def load_champion(self, model: str, champion: Champion) -> Artifact:
        """The champion's artifact, held to the hash that the pointer names."""
        return self._artifact(model, champion.version, champion.sha256)

    def promote(self, model: str, version: str, expect: str | None = _ANY, by: str = "hand") -> Champion:
        """Make a version the champion. `expect`: the version that must be champion now, None for none.

        Raises DashError, and changes nothing, when there is no such version, when it is damaged, when another one than
        expected is champion, and when somebody else promoted at the same moment; it says who.
        """
        sha256 = self._card(model, version).sha256
        self._artifact(model, version, sha256)
        found, present = self._replaceable(model)
        now = present.version if present else None
        if expect not in (_ANY, now):
            who = f"{now}, promoted by {present.by} at {present.promoted_at}" if present else "none"
            raise DashError(f"{model}: the champion is {who}, not {expect or 'none'}; {version} was not promoted")
        if present and now == version:
            return present
        term = Term(version, sha256, datetime.now(UTC).isoformat(), by)
        return self._point(model, term, present, found)

    def rollback(self, model: str, by: str = "hand") -> Champion:
        """Make the champion before the present one the champion again; the history goes on, and a second roll-back goes
        one further. Raises DashError when there was none, and as `promote` does."""
        found, present = self._replaceable(model)
        if present is None:
            raise DashError(f"{model}: no champion yet, so none to go back to; {_SEE_LIST}")
        before = _before(present.terms())
        if before is None:
            raise DashError(
                f"{model}: {present.version} is the first champion, there is none to go back to; {_SEE_LIST}"
            )
        self._artifact(model, before.version, before.sha256)
        term = Term(before.version, before.sha256, datetime.now(UTC).isoformat(), by, restored=True)
        return self._point(model, term, present, found)

    def _replaceable(self, model: str) -> tuple[s3.Object | None, Champion | None]:
        """The pointer, for who replaces it: a damaged one is replaced like none, but for its history, which is lost."""
        key = _pointer(model)
        found = self._bucket.read(key)
        try:
            return found, _decoded(found.data, Champion, key) if found else None
        except DashError as error:
            log.warning("%s; the history of champions begins anew", error)
            return found, None

    def _point(self, model: str, term: Term, present: Champion | None, found: s3.Object | None) -> Champion:
        previous = present.terms()[:_REMEMBERED] if present else ()
        champion = Champion(term.version, term.sha256, term.promoted_at, term.by, term.restored, previous)
        data = _json(champion)
        try:
            self._bucket.put(_pointer(model), data, new=found is None, replaces=found.etag if found else None)
        except s3.Conflict:
            # The answer to a write may be lost, and its repetition then meets what it wrote itself.
            there, winner = self._replaceable(model)
            if there is not None and there.data == data:
                return champion
            who = f"{winner.version}, by {winner.by} at {winner.promoted_at}" if winner else "another one"
            raise DashError(
                f"{model}: somebody else promoted {who}, at the same moment; {term.version} was not promoted."
                f" {_SEE_LIST[0].upper()}{_SEE_LIST[1:]}; promote again if it should replace that one"
            ) from None
        return champion


def _before(terms: tuple[Term, ...]) -> Term | None:
    """The champion that a roll-back goes to. A term that a roll-back began stands for the one it restored."""
    at = 0
    while at < len(terms) and terms[at].restored:
        later = (i for i in range(at + 1, len(terms)) if terms[i].version == terms[at].version)
        at = next(later, len(terms))
    return terms[at + 1] if at + 1 < len(terms) else None


def _folder(model: str, version: str) -> str:
    return f"models/{model}/versions/{version}"


def _pointer(model: str) -> str:
    return f"models/{model}/champion.json"


def _json(value: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1)


def _decoded(data: bytes, type_: type[_T], key: str) -> _T:
    try:
        return msgspec.json.decode(data, type=type_)
    except msgspec.MsgspecError as error:
        raise DashError(f"s3: {key} is damaged: {error}") from None
