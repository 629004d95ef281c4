"""Cursors: where a page ended, as text that a client hands back and cannot change.

Belongs here: making and reading them. Does not belong here: what they hold, which is the sort key of a page's last row.

A cursor is signed together with its question: it is of no use for another chain, filter or order. The key is made of
the database's address and password, which all replicas share and nobody else has.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence

import msgspec

from dash_pipeline.errors import DashError
from dash_pipeline.settings import Settings

_SIGNATURE = 12


class WrongCursor(DashError):
    """The cursor is not one of this question's."""


def key(settings: Settings) -> bytes:
    """What the cursors of this installation are signed with."""
    return hashlib.sha256(b"cursors of " + settings.timescale_dsn.get_secret_value().encode()).digest()


def write(key: bytes, question: str, place: Sequence[object]) -> str:
    """The cursor for going on after `place` in the answers to `question`."""
    body = msgspec.msgpack.encode(list(place))
    return base64.urlsafe_b64encode(_sign(key, question, body) + body).decode().rstrip("=")


def read(key: bytes, question: str, cursor: str) -> list[object]:
    """The place that a cursor of this question holds. Raises WrongCursor for any other text."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raw = b""
    signature, body = raw[:_SIGNATURE], raw[_SIGNATURE:]
    if not hmac.compare_digest(signature, _sign(key, question, body)):
        raise WrongCursor("cursor: it is not one that this question's last answer gave; begin without it")
    place: list[object] = msgspec.msgpack.decode(body)
    return place


def _sign(key: bytes, question: str, body: bytes) -> bytes:
    return hmac.digest(key, question.encode() + b"\0" + body, "sha256")[:_SIGNATURE]
