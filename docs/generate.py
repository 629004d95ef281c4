"""The pages and pictures of the reference that are made from code, each time the site is built.

Belongs here: reading definitions, and writing them as markdown and SVG. Does not belong here: what any of them means;
that is in the code it is read from.

`dash_pipeline/storage/dictionary.py` makes a page, too, which is kept in Git because people read it there.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

LOCATIONS = ("ingestion", "intelligence", "lifecycle", "marts")
# A registry of one chain: the assets of every chain are made alike.
_ONE_CHAIN = '[anvil]\ntitle = "Anvil"\nchain_id = 31337\nblock_time_s = 1.0\n'
# Nothing connects to these while definitions are read.
_SERVERS = {
    "DASH_KAFKA_BOOTSTRAP": "127.0.0.1:1",
    "DASH_TIMESCALE_DSN": "postgresql://127.0.0.1:1/dash",
    "DASH_OPENSEARCH_URL": "http://127.0.0.1:1",
}
_COLOURS = {"ingestion": "#dbeafe", "intelligence": "#fde68a", "lifecycle": "#e5e7eb", "marts": "#bbf7d0"}
_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _EDGE = 220, 54, 70, 26, 20


def write(folder: Path) -> None:
    """Every page and picture, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    repositories = _repositories()
    pages = {
        "settings.md": _settings(),
        "topics.md": _topics(),
        "commands.md": _commands(),
        "assets.md": _assets(repositories),
        "automation.md": _automation(repositories),
        "views.md": _views(),
        "metrics.md": _metrics(),
        "groups.svg": _groups(repositories),
        "starts.svg": _starts(repositories),
    }
    for name, text in pages.items():
        if not (folder / name).exists() or (folder / name).read_text() != text:
            (folder / name).write_text(text)


def _repositories() -> dict[str, Any]:
    """Location -> its definitions, for a registry of one chain and servers that are not asked."""
    from dash_pipeline.definitions import build_defs
    from dash_pipeline.settings import settings

    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as home, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        registry = Path(home) / "chains.toml"
        registry.write_text(_ONE_CHAIN)
        os.environ.update(_SERVERS | {"DASH_CHAINS_FILE": str(registry)})
        settings.cache_clear()
        try:
            return {location: build_defs(location).get_repository_def() for location in LOCATIONS}
        finally:
            os.environ.clear()
            os.environ.update(before)
            settings.cache_clear()


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(_cell(value) for value in row)} |\n" for row in lines) + "\n"


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def _settings() -> str:
    from dash_pipeline.settings import PREFIX, Settings

    rows = []
    for name, field in Settings.model_fields.items():
        default = "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
        rows.append((f"`{PREFIX}{name.upper()}`", f"`{_type(field.annotation)}`", default, field.description or ""))
    head = (
        "# Settings\n\nIn the environment, or in `.stack/env`, which the local stack writes; the environment counts"
        " more."
        " A wrong or missing one is one line at the start of any command: its name, what is wrong, where it is set."
        " Dictionaries and lists are JSON.\n\n"
    )
    return head + _table(("variable", "type", "default", "meaning"), rows)


def _type(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    for module in ("typing.", "pathlib.", "pathlib._local.", "pydantic.types.", "dash_pipeline.settings."):
        text = text.replace(module, "")
    return text


def _default(value: object) -> str:
    return "" if value in (None, "", {}, []) else f"`{value}`"


def _topics() -> str:
    from dash_pipeline.topics import ANOMALIES, DEAD_LETTERS, TYPES, wanted

    about = {
        f"<chain>.{topic}": f"messages of type `{type_}`, as ethereum-etl prints them" for type_, topic in TYPES.items()
    }
    about |= {
        DEAD_LETTERS: "messages that were refused, whole, the reason in their headers",
        ANOMALIES: "a message for each anomaly found, changed or retracted, keyed by token",
    }
    made = wanted(["<chain>"])
    rows = [
        (
            f"`{name}`",
            about[name],
            topic["num_partitions"],
            f"{int(topic['configs']['retention.ms']) / 86_400_000:g}",
            f"{int(topic['configs']['max.message.bytes']) >> 20}",
        )
        for name, topic in made.items()
    ]
    head = (
        "# Topics\n\nAs `dash-pipeline up` and `dash-pipeline prepare` make them where they are missing; a topic that"
        " exists is left as it is, whatever its partitions.\n\n"
    )
    return head + _table(("topic", "what is on it", "partitions", "kept, days", "largest message, MiB"), rows)


def _commands() -> str:
    import typer.main

    from dash_pipeline.cli import app

    head = "# Commands\n\nEach is `dash-pipeline ...`. Exit code 2 with one line on stderr says what is wrong.\n\n"
    return head + "".join(_command(typer.main.get_command(app), "dash-pipeline", 2))


def _command(command: Any, name: str, level: int) -> Iterator[str]:
    if commands := getattr(command, "commands", None):
        if level > 2:
            yield f"{'#' * (level - 1)} {name}\n\n{command.help or ''}\n\n"
        for sub, inner in commands.items():
            yield from _command(inner, f"{name} {sub}", level + (1 if getattr(inner, "commands", None) else 0))
        return
    yield f"{'#' * level} {name}\n\n{' '.join((command.help or '').split())}\n\n"
    rows = [_parameter(one) for one in command.params if one.name != "help"]
    if rows:
        yield _table(("argument or option", "default", "meaning"), rows)


def _parameter(one: Any) -> tuple[str, str, str]:
    names = (
        ", ".join([*one.opts, *one.secondary_opts])
        if one.param_type_name == "option"
        else (one.metavar or one.name.upper())
    )
    default = "required" if one.required else "" if one.default in (None, "", False, []) else f"`{one.default}`"
    return f"`{names}`", default, one.help or ""


def _own(repositories: Mapping[str, Any]) -> Iterator[tuple[str, Any, list[str]]]:
    """Location, asset and the names of its checks, of every asset where it is made."""
    for location, repository in repositories.items():
        graph = repository.asset_graph
        checks: dict[Any, list[str]] = {}
        for key in sorted(graph.asset_check_keys):
            checks.setdefault(key.asset_key, []).append(key.name)
        for key in sorted(graph.get_all_asset_keys()):
            if graph.get(key).group_name != "default":  # what a location knows of others' by name
                yield location, graph.get(key), checks.get(key, [])


def _assets(repositories: Mapping[str, Any]) -> str:
    groups: dict[tuple[str, str], list[tuple[Any, list[str]]]] = {}
    for location, node, checks in _own(repositories):
        groups.setdefault((location, node.group_name), []).append((node, checks))
    text = "# Assets\n\nOf chain `anvil`; every chain of the registry has the same.\n\n"
    for (location, group), nodes in groups.items():
        text += f"## {group} ({location})\n\n" + _table(
            ("asset", "what it is", "kinds", "owner", "checks"),
            (
                (
                    f"`{node.key.to_user_string()}`",
                    (node.description or "").partition("\n\n")[0],
                    ", ".join(sorted(node.kinds)),
                    ", ".join(owner.removeprefix("team:") for owner in node.owners),
                    ", ".join(f"`{check}`" for check in checks),
                )
                for node, checks in nodes
            ),
        )
    return text


def _automation(repositories: Mapping[str, Any]) -> str:
    text = "# Jobs, sensors, schedules\n\nOf chain `anvil`; every chain of the registry has the same.\n\n"
    for location, repository in repositories.items():
        jobs = [job for job in repository.get_all_jobs() if not job.name.startswith("__")]
        text += f"## {location}\n\n" + _table(
            ("job", "what it does"),
            ((f"`{job.name}`", job.description or "") for job in sorted(jobs, key=lambda j: j.name)),
        )
        started = [
            (f"`{one.name}`", f"every {one.minimum_interval_seconds} s", one.description)
            for one in repository.sensor_defs
        ]
        started += [(f"`{one.name}`", f"`{one.cron_schedule}`", one.description) for one in repository.schedule_defs]
        text += _table(("sensor or schedule", "when", "what it does"), started)
    return text


def _views() -> str:
    from resources.dbt import load_manifest

    text = "# Views and marts\n\nIn schema `analytics`, made by dbt from the hot tables; `dbt/` has the SQL.\n\n"
    models = [node for node in load_manifest()["nodes"].values() if node["resource_type"] == "model"]
    for node in sorted(models, key=lambda node: node["name"]):
        text += f"## {node['schema']}.{node['name']}\n\n{node['description']} ({node['config']['materialized']})\n\n"
        columns = node["columns"].items()
        text += _table(("column", "type", "meaning"), ((n, c["data_type"] or "", c["description"]) for n, c in columns))
    return text


def _metrics() -> str:
    text = "# Metrics\n\n"
    if importlib.util.find_spec("dash_pipeline.metrics") is None:
        return text + "The platform has no Prometheus metrics yet; what it measures is metadata of its assets.\n"
    metrics = importlib.import_module("dash_pipeline.metrics").METRICS
    listed = metrics.values() if isinstance(metrics, Mapping) else metrics
    rows = ((f"`{m.name}`", m.type, m.unit, ", ".join(m.labels), m.source, m.help) for m in listed)
    return text + _table(("metric", "type", "unit", "labels", "shown by", "meaning"), rows)


def _groups(repositories: Mapping[str, Any]) -> str:
    """The asset groups, from left to right as data flows."""
    places: dict[str, str] = {}
    parents: dict[str, set[str]] = {}
    counts: dict[str, dict[str, list[Any]]] = {}
    groups = {node.key: node.group_name for _, node, _ in _own(repositories)}
    for location, node, _ in _own(repositories):
        # A group that two locations add to is drawn where most of it is made.
        counts.setdefault(node.group_name, {}).setdefault(location, []).append(node.key)
        parents.setdefault(node.group_name, set()).update(groups[key] for key in node.parent_keys if key in groups)
    for group, by_location in counts.items():
        places[group] = max(by_location, key=lambda location: len(by_location[location]))
    edges = {group: found - {group} for group, found in parents.items()}
    depth: dict[str, int] = {}

    def place(group: str, path: tuple[str, ...] = ()) -> int:
        if group not in depth:
            above = [place(one, (*path, group)) for one in edges[group] if one not in path]
            depth[group] = max(above, default=-1) + 1
        return depth[group]

    boxes = {
        group: (place(group), f"{group}", f"assets: {sum(map(len, counts[group].values()))}", _COLOURS[places[group]])
        for group in sorted(edges)
    }
    return _drawing(boxes, [(one, group) for group, found in sorted(edges.items()) for one in sorted(found)])


def _starts(repositories: Mapping[str, Any]) -> str:
    """What starts which job, and which groups it makes."""
    boxes: dict[str, tuple[int, str, str, str]] = {}
    arrows: list[tuple[str, str]] = []
    for location, repository in repositories.items():
        colour = _COLOURS[location]
        starts = [(one, f"every {one.minimum_interval_seconds} s") for one in repository.sensor_defs]
        starts += [(one, one.cron_schedule) for one in repository.schedule_defs]
        for one, when in starts:
            targets = getattr(one, "targets", None) or [getattr(one, "target", None)]
            for job in (target.job_name for target in targets if target and repository.has_job(target.job_name)):
                boxes[f"start {one.name}"] = (0, one.name, when, colour)
                boxes[f"job {job}"] = (1, job, "job", colour)
                arrows.append((f"start {one.name}", f"job {job}"))
                for key in repository.get_job(job).asset_layer.executable_asset_keys:
                    group = repository.asset_graph.get(key).group_name
                    boxes[f"group {group}"] = (2, group, "assets", colour)
                    arrows.append((f"job {job}", f"group {group}"))
    return _drawing(boxes, sorted(set(arrows)))


def _drawing(boxes: Mapping[str, tuple[int, str, str, str]], arrows: Iterable[tuple[str, str]]) -> str:
    """Boxes (column, title, note, colour) in columns, arrows from left to right between them."""
    columns: dict[int, list[str]] = {}
    for name, (column, *_) in boxes.items():
        columns.setdefault(column, []).append(name)
    tallest = max(map(len, columns.values()))
    height = tallest * (_HEIGHT + _GAP_Y) + _GAP_Y
    width = len(columns) * (_WIDTH + _GAP_X) + _GAP_X
    corners = {}
    for column, names in columns.items():
        top = (height - len(names) * (_HEIGHT + _GAP_Y) + _GAP_Y) / 2
        for row, name in enumerate(names):
            corners[name] = (_GAP_X / 2 + column * (_WIDTH + _GAP_X), top + row * (_HEIGHT + _GAP_Y))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"',
        ' font-size="13">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#64748b"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for one, other in arrows:
        x0, y0 = corners[one][0] + _WIDTH, corners[one][1] + _HEIGHT / 2
        x1, y1 = corners[other][0], corners[other][1] + _HEIGHT / 2
        parts.append(
            f'<path d="M{x0} {y0:g} C{x0 + _EDGE * 2} {y0:g} {x1 - _EDGE * 2} {y1:g} {x1} {y1:g}" fill="none"'
            ' stroke="#64748b" marker-end="url(#tip)"/>'
        )
    for name, (_, title, note, colour) in boxes.items():
        x, y = corners[name]
        parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="{colour}" stroke="#475569"/>'
            f'<text x="{x + _WIDTH / 2:g}" y="{y + 23:g}" text-anchor="middle">{escape(title)}</text>'
            f'<text x="{x + _WIDTH / 2:g}" y="{y + 41:g}" text-anchor="middle" fill="#475569" font-size="11">'
            f"{escape(note)}</text>"
        )
    return "\n".join([*parts, "</svg>", ""])
