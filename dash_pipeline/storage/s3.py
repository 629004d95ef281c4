"""Objects in a bucket, on AWS S3 or whatever speaks its protocol.

Belongs here: the client, conditional writes, and what an error means. Does not belong here: which keys there are
(`dash_pipeline/models/registry.py`).

A write may depend on what it replaces (`If-Match`, `If-None-Match: *`): of several writers at once, one wins and the
others get `Conflict`. AWS S3 and SeaweedFS both hold to that.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import Any

from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.settings import Settings
from dash_pipeline.storage.encryption import Key

_CONNECT_S, _READ_S, _ATTEMPTS = 3, 10, 2
_ABSENT = frozenset({"NoSuchKey", "404"})
_DELETED_AT_ONCE = 1000
# Larger objects are moved in parts of this size, so many at a time.
_PART, _PARTS_AT_ONCE = 16 << 20, 2
_UNCHANGED = frozenset({"NotModified", "304"})
# 409 is AWS's answer to two conditional writes at the same moment; 404 is its answer to If-Match on a deleted object.
_NOT_AS_EXPECTED = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict", "409"})
_BUSY = frozenset({"SlowDown", "RequestTimeout", "RequestLimitExceeded", "Throttling", "ThrottlingException"})


class Conflict(DashError):
    """The object is not what a conditional write expects: somebody else has written it."""


@dataclass(frozen=True)
class Object:
    """An object's content, and the tag that a conditional request names it by."""

    data: bytes
    etag: str


@dataclass(frozen=True)
class Bucket:
    """A bucket; safe to use from several threads. Every method raises Unavailable when the store does not answer, and
    DashError when it refuses (no such bucket, wrong key)."""

    client: Any
    name: str
    where: str

    def get(self, key: str, seal: Key | None = None) -> bytes | None:
        """The object's content; None when there is no such object. `seal`: the key it is encrypted with."""
        found = self.read(key, seal=seal)
        return found.data if found else None

    def read(self, key: str, known: Object | None = None, seal: Key | None = None) -> Object | None:
        """The object; None when there is none. It is `known` itself, and nothing is sent, when that is still it."""
        condition = ({"IfNoneMatch": known.etag} if known else {}) | _sealed(seal)
        with self._errors(key, seal):
            try:
                answer = self.client.get_object(Bucket=self.name, Key=key, **condition)
            except self.client.exceptions.ClientError as error:
                if _code(error) in _ABSENT:
                    return None
                if _code(error) in _UNCHANGED:
                    return known
                raise
            # The body's own `with` hands out the raw stream, which checks no checksum and knows no errors of botocore.
            with closing(answer["Body"]) as body:
                return Object(body.read(), answer["ETag"])

    def put(
        self, key: str, data: bytes, *, new: bool = False, replaces: str | None = None, seal: Key | None = None
    ) -> None:
        """Write an object. Raises Conflict when it is to be `new` and there is one, and when it `replaces` one with
        this tag and another one is there; nothing is written then.

        A write whose answer was lost is sent again, and may so find its own object there: compare before believing.
        """
        condition = {"IfNoneMatch": "*"} if new else {"IfMatch": replaces} if replaces else {}
        with self._errors(key):
            try:
                self.client.put_object(Bucket=self.name, Key=key, Body=data, **condition, **_sealed(seal))
            except self.client.exceptions.ClientError as error:
                if condition and _code(error) in _NOT_AS_EXPECTED | _ABSENT:
                    raise Conflict(f"s3: {self.name}/{key}: somebody else has written it meanwhile") from None
                raise

    def upload(self, file: Path, key: str, seal: Key | None = None) -> None:
        """Write an object from a file, a large one in parts; there is none until all of it is there."""
        with file.open("rb") as content, self._errors(key, seal):
            self.client.upload_fileobj(content, self.name, key, ExtraArgs=_sealed(seal), Config=_transfer())

    def download(self, key: str, file: Path, seal: Key | None = None) -> None:
        """Write an object's content to a file. Raises DashError when there is no such object."""
        with file.open("wb") as content, self._errors(key, seal):
            self.client.download_fileobj(self.name, key, content, ExtraArgs=_sealed(seal), Config=_transfer())

    def copy(self, key: str, to: str, seal: Key | None = None, reseal: Key | None = None) -> None:
        """Copy an object of up to 5 GB within the store; `seal`: what it is encrypted with, `reseal`: what the copy
        is."""
        source = {"Bucket": self.name, "Key": key}
        with self._errors(key, seal):
            self.client.copy_object(
                Bucket=self.name, Key=to, CopySource=source, **_sealed(reseal), **(seal.source() if seal else {})
            )

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that are not there already are no error. Raises Unavailable when one was not."""
        for start in range(0, len(keys), _DELETED_AT_ONCE):
            some = keys[start : start + _DELETED_AT_ONCE]
            with self._errors(some[0]):
                answer = self.client.delete_objects(
                    Bucket=self.name, Delete={"Objects": [{"Key": key} for key in some], "Quiet": True}
                )
            if failed := answer.get("Errors"):
                raise Unavailable(f"s3: {self.name}/{failed[0]['Key']}: not deleted: {failed[0].get('Code')}")

    def keys(self, prefix: str) -> list[str]:
        """The keys that begin so, in order."""
        with self._errors(prefix):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
            return sorted(found["Key"] for page in pages for found in page.get("Contents", ()))

    def abort_uploads(self, older_than: timedelta) -> list[str]:
        """End the uploads in parts that began longer ago, by the store's own clock; the keys they were for."""
        aborted = []
        with self._errors("?uploads"):
            for page in self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.name):
                now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
                for upload in page.get("Uploads", ()):
                    if now - upload["Initiated"] > older_than:
                        self._abort(upload["Key"], upload["UploadId"])
                        aborted.append(upload["Key"])
        return aborted

    def _abort(self, key: str, upload: str) -> None:
        # Somebody may have finished or ended it meanwhile.
        with self._errors(key), suppress(self.client.exceptions.NoSuchUpload):
            self.client.abort_multipart_upload(Bucket=self.name, Key=key, UploadId=upload)

    @contextmanager
    def _errors(self, key: str, seal: Key | None = None) -> Iterator[None]:
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            FlexibleChecksumError,
            NoCredentialsError,
            PartialCredentialsError,
        )

        place = f"s3: {self.name}/{key}"
        try:
            yield
        except ClientError as error:
            code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if status >= 500 or code in _BUSY:
                raise Unavailable(f"{place}: {self.where} answers {code}") from error
            if code == "NoSuchBucket":
                raise DashError(
                    f"s3: {self.where} has no bucket {self.name}; make it, or set DASH_S3_BUCKET"
                ) from error
            hint = "; check DASH_S3_ACCESS_KEY and DASH_S3_SECRET_KEY" if status in (401, 403) else ""
            if seal and status in (400, 403):
                hint += f", and that {seal.name} in DASH_ENCRYPTION_KEYS is the key it was written with"
            raise DashError(f"{place}: {self.where} refuses: {code}{hint}") from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise DashError(f"{place}: no key; set DASH_S3_ACCESS_KEY and DASH_S3_SECRET_KEY, or AWS's own") from error
        except FlexibleChecksumError as error:
            raise DashError(
                f"{place}: what {self.where} sends is not what was stored (checksum); it is damaged there or on its way"
            ) from error
        except (BotoCoreError, OSError) as error:
            # The text would name addresses and counters that differ each time.
            raise Unavailable(f"{place}: no connection to {self.where} ({type(error).__name__})") from error


# A session reads the descriptions of AWS's services, which takes a tenth of a second, and makes one client at a time.
_MAKING = threading.Lock()


@cache
def _session() -> Any:
    import boto3

    return boto3.session.Session()


def bucket(settings: Settings, name: str = "") -> Bucket:
    """The platform's bucket, or the one of this name; nothing is connected yet.

    Without keys in the settings AWS's usual places are asked (environment, profile, the machine's role).
    """
    from botocore.config import Config

    secret = settings.s3_secret_key
    with _MAKING:
        client = _session().client(
            "s3",
            endpoint_url=settings.s3_endpoint,
            region_name=settings.s3_region,
            aws_access_key_id=settings.s3_access_key,
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            config=Config(
                connect_timeout=_CONNECT_S,
                read_timeout=_READ_S,
                retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
                proxies={},
                s3={"addressing_style": "path"},
            ),
        )
    return Bucket(client, name or settings.s3_bucket, settings.s3_endpoint or f"AWS S3 in {settings.s3_region}")


def _sealed(seal: Key | None) -> dict[str, Any]:
    return seal.request() if seal else {}


def _transfer() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=_PART, multipart_chunksize=_PART, max_concurrency=_PARTS_AT_ONCE)


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
