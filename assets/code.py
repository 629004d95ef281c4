"""Where the code of each asset is: a link in the catalogue.

Belongs here: from a definition to a file and line. Does not belong here: anything else about assets.

Dagster's own `with_source_code_references` reads and tokenizes the source of each function, which takes a location's
load longer, and passes over assets without a function (topics); a code object knows its file and line.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, overload

from dagster import AssetKey, AssetsDefinition, AssetSpec, BetaWarning, CodeReferencesMetadataValue, UrlCodeReference
from dagster import LocalFileCodeReference as LocalFile

from dash_pipeline.settings import settings

_ROOT = Path(__file__).parents[1]
_FIELD = "dagster/code_references"


@overload
def linked(assets: Iterable[AssetSpec], made_by: Callable[..., Any]) -> list[AssetSpec]: ...
@overload
def linked(assets: Iterable[AssetsDefinition], *, files: Mapping[AssetKey, Path] = ...) -> list[AssetsDefinition]: ...
def linked(
    assets: Iterable[Any], made_by: Callable[..., Any] | None = None, *, files: Mapping[AssetKey, Path] | None = None
) -> list[Any]:
    """The same assets with a reference to their code: the function that materialises them, or `made_by` where there is
    none; and, before it, the file that `files` has for a key (a dbt model's SQL).

    References are files of this checkout, or, with DASH_CODE_URL, addresses below it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BetaWarning)  # one for each reference
        return [_linked(one, made_by, files or {}) for one in assets]


def _linked(
    one: AssetsDefinition | AssetSpec, made_by: Callable[..., Any] | None, files: Mapping[AssetKey, Path]
) -> AssetsDefinition | AssetSpec:
    code = (made_by or _function(one)).__code__
    place = _reference(Path(code.co_filename), code.co_firstlineno)

    def referring(spec: AssetSpec) -> AssetSpec:
        own = [_reference(files[spec.key], 1)] if spec.key in files else []
        return spec.merge_attributes(metadata={_FIELD: CodeReferencesMetadataValue(code_references=[*own, place])})

    return referring(one) if isinstance(one, AssetSpec) else one.map_asset_specs(referring)


def _function(one: AssetsDefinition | AssetSpec) -> Callable[..., Any]:
    """The function that materialises an asset."""
    assert isinstance(one, AssetsDefinition)
    function: Callable[..., Any] = one.op.compute_fn.decorated_fn  # type: ignore[union-attr]
    return function


def _reference(file: Path, line: int) -> LocalFile | UrlCodeReference:
    relative = file.resolve().relative_to(_ROOT)
    if base := settings().code_url:
        return UrlCodeReference(url=f"{base.rstrip('/')}/{relative}#L{line}", label=str(relative))
    return LocalFile(file_path=str(_ROOT / relative), line_number=line, label=str(relative))
