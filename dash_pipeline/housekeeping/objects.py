"""Uploads that nobody finished leave the bucket.

Belongs here: which uploads are orphaned. Does not belong here: objects without a manifest (`archive/`, `backups/`).
"""

from __future__ import annotations

from datetime import timedelta

from dash_pipeline.settings import Settings
from dash_pipeline.storage import s3


def abort_uploads(settings: Settings) -> list[str]:
    """End the uploads in parts that began more than `upload_hours` ago; the keys they were for. Their parts cost space,
    and no listing shows them. Raises Unavailable when the store does not answer."""
    return s3.bucket(settings).abort_uploads(timedelta(hours=settings.upload_hours))
