"""Which columns of its parents each column of a dbt model comes from.

Belongs here: reading that from the models' SQL, without a database. Does not belong here: what parents are as assets
(`assets/marts/`).

dbt compiles a model only with a database at hand. Here its Jinja is rendered with stand-ins: a relation's name for
`ref` and `source`, and the project's own macros, which leave out what they would ask a database for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dash_pipeline.errors import DashError, first_line

#: Column -> the parents' columns: (unique id, column).
Columns = Mapping[str, list[tuple[str, str]]]


def column_lineage(project: Path, manifest: Mapping[str, Any]) -> dict[str, Columns]:
    """Unique id of each model -> its columns' origins. Raises DashError with the model whose SQL cannot be read."""
    parents = {
        (node["schema"], node["name"]): (unique_id, {name: c["data_type"] for name, c in node["columns"].items()})
        for kind in ("nodes", "sources")
        for unique_id, node in manifest[kind].items()
        if node["resource_type"] in ("model", "source")
    }
    macros = "\n".join(path.read_text(encoding="utf-8") for path in sorted((project / "macros").glob("*.sql")))
    models = {i: node for i, node in manifest["nodes"].items() if node["resource_type"] == "model"}
    return {
        unique_id: _model(node["name"], _render(macros, node), node["columns"], parents)
        for unique_id, node in models.items()
    }


def _render(macros: str, node: Mapping[str, Any]) -> str:
    """A model's SQL as it is for the first time."""
    from jinja2 import Environment

    text = Environment(extensions=["jinja2.ext.do"]).from_string(macros + node["raw_code"])
    return text.render(
        config=lambda **_: "",
        ref=lambda name: f"{node['schema']}.{name}",
        source=lambda schema, name: f"{schema}.{name}",
        is_incremental=lambda: False,
        execute=False,
        none=None,
        this=None,
    )


def _model(
    name: str, text: str, columns: Mapping[str, Any], parents: Mapping[tuple[str, str], tuple[str, Mapping[str, str]]]
) -> Columns:
    from sqlglot import exp
    from sqlglot.errors import SqlglotError
    from sqlglot.lineage import lineage

    schema: dict[str, dict[str, dict[str, str]]] = {}
    for (namespace, relation), (_, types) in parents.items():
        schema.setdefault(namespace, {})[relation] = dict(types)
    try:
        nodes = lineage(None, text, schema, dialect="postgres", validate_qualify_columns=False, identify=False)
    except SqlglotError as error:
        raise DashError(f"dbt model {name}: its columns cannot be followed: {first_line(error)}") from error
    found: dict[str, list[tuple[str, str]]] = {}
    for column in columns:
        origins: set[tuple[str, str]] = set()
        for leaf in nodes[column].walk() if column in nodes else ():
            table = leaf.expression.find(exp.Table)
            if not leaf.downstream and table is not None and (table.db, table.name) in parents:
                unique_id, known = parents[table.db, table.name]
                origin = exp.to_column(leaf.name).name
                if origin in known:
                    origins.add((unique_id, origin))
        found[column] = sorted(origins)
    return found
