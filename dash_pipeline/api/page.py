"""The page at /docs: every endpoint with its parameters, an example and its answer, made of the OpenAPI document.

Belongs here: HTML. Does not belong here: what it says, which is the document's. The usual pages for such documents
fetch their program from another site when they are opened; this one fetches nothing and runs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any
from urllib.parse import quote, urlencode

from litestar import Request
from litestar.openapi.plugins import OpenAPIRenderPlugin

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
h2{border-top:1px solid #ccc;padding-top:1rem;margin-top:2rem;font-size:1.15rem}
code,pre{font-family:ui-monospace,monospace;font-size:.85rem}
pre{background:#f4f4f4;padding:.75rem;overflow:auto;max-height:24rem;border-radius:4px}
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.25rem .5rem .25rem 0}
td:first-child{white-space:nowrap}summary{cursor:pointer}
@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}pre{background:#262626}a{color:#8bf}}
"""


class Page(OpenAPIRenderPlugin):
    """Litestar's way to add a page that is made of the document."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The page."""
        return page(openapi_schema).encode()


def page(document: Mapping[str, Any]) -> str:
    """HTML of an OpenAPI document, as it is in JSON."""
    about = document["info"]
    operations = [(path, entry["get"]) for path, entry in document["paths"].items() if "get" in entry]
    links = "".join(
        f'<li><a href="#{escape(one["operationId"])}"><code>{escape(path)}</code></a> {escape(one["summary"])}</li>'
        for path, one in operations
    )
    return "".join(
        [
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(about["title"])}</title>',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<style>{_STYLE}</style></head><body><h1>{escape(about['title'])}</h1>",
            f'<p>{escape(about["description"])} <a href="/docs/openapi.json">The document for programs</a>.</p>',
            f"<ul>{links}</ul>",
            *(part for path, one in operations for part in _operation(path, one)),
            "</body></html>",
        ]
    )


def _operation(path: str, one: Mapping[str, Any]) -> Iterator[str]:
    yield f'<h2 id="{escape(one["operationId"])}"><code>GET {escape(path)}</code><br>{escape(one["summary"])}</h2>'
    yield f"<p>{escape(one.get('description', ''))}</p>"
    parameters = one.get("parameters", [])
    if parameters:
        yield "<table><tr><th>parameter</th><th>meaning</th></tr>"
        for parameter in parameters:
            yield f"<tr><td><code>{escape(parameter['name'])}</code></td><td>{_meaning(parameter)}</td></tr>"
        yield "</table>"
    yield f"<pre>curl '{escape(_example_url(path, parameters))}' -H 'X-Api-Key: KEY'</pre>"
    for status, answer in sorted(one["responses"].items()):
        examples = [
            example["value"]
            for content in answer.get("content", {}).values()
            for example in content.get("examples", {}).values()
        ]
        shown = "".join(f"<pre>{escape(json.dumps(example, indent=1))}</pre>" for example in examples)
        opened = " open" if status == "200" else ""
        about = f"{escape(status)}: {escape(answer.get('description', ''))}"
        yield f"<details{opened}><summary>{about}</summary>{shown}</details>"


def _meaning(parameter: Mapping[str, Any]) -> str:
    schema = parameter.get("schema", {})
    parts = [parameter.get("description", "")]
    if values := schema.get("enum"):
        parts.append("one of " + ", ".join(map(str, values)))
    if schema.get("default") is not None:
        parts.append(f"{schema['default']} if it is not given")
    if parameter.get("required"):
        parts.append("needed")
    return escape("; ".join(part for part in parts if part))


def _example_url(path: str, parameters: list[Mapping[str, Any]]) -> str:
    query = {}
    for parameter in parameters:
        examples = [one["value"] for one in parameter.get("examples", {}).values()]
        if not examples:
            continue
        if parameter["in"] == "path":
            path = path.replace("{" + parameter["name"] + "}", quote(str(examples[0])))
        else:
            query[parameter["name"]] = str(examples[0]).lower() if isinstance(examples[0], bool) else examples[0]
    return path + (f"?{urlencode(query)}" if query else "")
