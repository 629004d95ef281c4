"""`dash-pipeline`: the one command of the platform.

Belongs here: arguments, help texts, what is printed.
Does not belong here: the work; each command calls one function.
"""

from __future__ import annotations

import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from dash_pipeline.errors import DashError

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Chain events to tables, search and alerts."
)
out = Console()
err = Console(stderr=True)


@app.command()
def up(
    only: Annotated[str, typer.Option(help="These servers or groups and what they need, as in kafka,timescale.")] = "",
) -> None:
    """Install what is missing, and bring up the local stack: servers, schema, topics, Dagster."""
    from dash_pipeline.stack import Stack
    from dash_pipeline.stack.progress import shown_on

    with shown_on(err) as progress:
        Stack.at().up(only=[name for name in only.split(",") if name], progress=progress)


@app.command()
def down() -> None:
    """Stop every process of the local stack, and no other."""
    from dash_pipeline.stack import Stack
    from dash_pipeline.stack.progress import shown_on

    with shown_on(err) as progress:
        Stack.at().down(progress)


@app.command()
def prepare() -> None:
    """Make what is missing in the servers of the settings: schema, topics, index templates. What is there stays."""
    from dash_pipeline.settings import load_settings
    from dash_pipeline.stack.content import STORES, make_content
    from dash_pipeline.stack.progress import shown_on

    with shown_on(err) as progress:
        make_content(load_settings(), STORES, progress)


@app.command()
def status(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    secrets: Annotated[bool, typer.Option("--secrets", help="Show passwords in addresses.")] = False,
) -> None:
    """Show servers, code locations, lag and live lanes of the local stack."""
    from dash_pipeline.stack import Stack
    from dash_pipeline.stack.report import as_json, show
    from dash_pipeline.stack.status import status as gather

    report = gather(Stack.at(), secrets=secrets)
    if json:
        out.print_json(as_json(report))
    else:
        show(report, out)


@app.command()
def metrics(
    host: Annotated[str, typer.Option(help="The address to listen at; there is no password.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 9465,
    dagster: Annotated[str, typer.Option(metavar="URL", help="Dagster's webserver, if not DASH_DAGSTER_URL.")] = "",
) -> None:
    """Show metrics to Prometheus, until it is stopped: lag, lanes, runs, backups, sizes, and what lanes measure."""
    import threading

    from dash_pipeline.exporter import serve
    from dash_pipeline.settings import load_settings

    _end_in_good_order()
    server, exporter = serve(load_settings(), host, port, dagster)
    err.print(f"http://{host}:{server.server_port}/metrics")
    try:
        threading.Event().wait()
    finally:
        server.shutdown()
        exporter.close()


@app.command()
def reset(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    all_: Annotated[bool, typer.Option("--all", help="Forget passwords and settings too.")] = False,
) -> None:
    """Stop the local stack and delete its data; installed servers stay."""
    from dash_pipeline.stack import Stack

    stack = Stack.at()
    if not yes:
        typer.confirm(f"Delete all data under {stack.layout.home}?", abort=True)
    stack.reset(everything=all_)


@app.command()
def feed(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH", help="Files or folders of .json, .jsonl, .jsonl.gz, .jsonl.zst."),
    ] = None,
    chain: Annotated[str, typer.Option(help="The chain they are of: ethereum for files, anvil for --rpc.")] = "",
    key: Annotated[Literal["none", "token", "wallet"], typer.Option(help="What messages are keyed by.")] = "none",
    rate: Annotated[float | None, typer.Option(min=0.001, help="Messages a second; full speed without.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until all of it is committed in TimescaleDB.")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait at most.")] = 600,
    rpc: Annotated[str, typer.Option(metavar="URL", help="A node to stream from, instead of files.")] = "",
    from_block: Annotated[
        int | None, typer.Option(min=0, help="With --rpc: begin here, not where the last run ended.")
    ] = None,
    once: Annotated[bool, typer.Option("--once/--follow", help="With --rpc: end at the node's height now.")] = False,
    entities: Annotated[
        str, typer.Option(help="With --rpc: the types to export; trace, contract and token need a tracing node.")
    ] = "block,transaction,log,token_transfer",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Publish events in ethereum-etl's format to Kafka: from files, or from a node with --rpc."""
    import msgspec

    from dash_pipeline.chains import load_chains
    from dash_pipeline.feed import show
    from dash_pipeline.feed.live import live
    from dash_pipeline.feed.publish import Key
    from dash_pipeline.feed.replay import Report, replay
    from dash_pipeline.settings import load_settings

    if bool(paths) == bool(rpc):
        raise typer.BadParameter("give either files and folders, or --rpc URL")
    settings = load_settings()
    chains = load_chains(settings.chains_file)
    name = chain or ("anvil" if rpc else "ethereum")
    if name not in chains:
        raise DashError(f"--chain: no {name} in the registry (known: {', '.join(chains)})")
    report: Report
    if rpc:
        with show.line(err) as say:
            report = live(
                settings,
                rpc,
                chains[name],
                entities=entities.split(","),
                from_block=from_block,
                once=once,
                key=Key(key),
                tell=lambda followed: say(show.followed_line(followed)),
                say=say,
            )
    else:
        with show.bars(err) as progress:
            report = replay(
                settings,
                paths or [],
                name,
                key=Key(key),
                rate=rate,
                wait_s=timeout if wait else None,
                progress=progress,
            )
    if json:
        out.print_json(msgspec.json.encode(report).decode())
    else:
        show.print_report(report, out)


@app.command()
def offsets(
    set_beginning: Annotated[
        str, typer.Option(metavar="TOPIC", help="Ingest this topic from its first offset again.")
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how far each partition is ingested, or let a topic start over; rows are never doubled by that."""
    from dash_pipeline.settings import load_settings
    from dash_pipeline.storage import timescale

    with timescale.connect(load_settings()) as conn:
        if set_beginning and not timescale.forget_offsets(conn, set_beginning):
            raise DashError(f"--set-beginning: no partition of {set_beginning} was ever ingested")
        committed = {f"{topic}/{number}": next_ for (topic, number), next_ in timescale.committed_offsets(conn).items()}
    if json:
        out.print_json(data=committed)
    else:
        for partition, next_offset in sorted(committed.items()):
            out.print(f"{partition} {next_offset:,}", highlight=False)


@app.command("restore-topics")
def restore_topics(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Make the topics that Kafka has lost, as they were when they were last backed up."""
    import msgspec

    from dash_pipeline.backups import kafka
    from dash_pipeline.settings import load_settings

    settings = load_settings()
    done = kafka.restore_topics(settings, kafka.load(settings))
    if json:
        out.print_json(msgspec.json.encode(done).decode())
    else:
        for what, names in (("made", done.created), ("widened", done.widened), ("other settings", done.differing)):
            out.print(f"{what}: {', '.join(names) or 'none'}", highlight=False, soft_wrap=True)


@app.command()
def demo(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for the ingestion at most.")] = 300,
    live: Annotated[bool, typer.Option("--live", help="Mine a market now instead of the recorded one.")] = False,
) -> None:
    """Start everything, feed the recorded market through it, and show what came out. Exit code 1 if counts disagree."""
    import msgspec

    from dash_pipeline import demo as it
    from dash_pipeline.feed import show
    from dash_pipeline.stack import Stack
    from dash_pipeline.stack.progress import shown_on

    stack = Stack.at()
    with shown_on(err) as started:
        stack.up(progress=started)
    if live:
        with show.line(err) as say:
            show.print_report(it.live_demo(stack, say), out)
        return
    with show.bars(err) as progress:
        outcome = it.demo(stack, progress, lambda text: err.print(text, highlight=False), timeout)
    if json:
        out.print_json(msgspec.json.encode(outcome).decode())
    else:
        it.show(outcome, out)
    if not outcome.agrees:
        raise typer.Exit(1)


@app.command()
def backup(
    full: Annotated[bool, typer.Option("--full", help="A full one, whatever there is.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Take none; show what there is.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Back up the database to S3: what changed since the last backup, or all of it once a week."""
    from dash_pipeline.backups import database, show
    from dash_pipeline.settings import load_settings
    from dash_pipeline.storage import s3

    settings = load_settings()
    if list_:
        found = database.backups(s3.bucket(settings))
    else:
        _end_in_good_order()
        found = [database.take(settings, full=full, say=_say)]
        database.prune(settings)
    if json:
        out.print_json(data=show.as_json(found))
    else:
        out.print(show.backups_table(found))


@app.command()
def drill(
    only: Annotated[Literal["database", "search"] | None, typer.Option(help="Only this one; both without.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Restore the newest backups of database and indexes beside them, and compare. Exit code 1 if something differs."""
    from dash_pipeline.backups import drill as database
    from dash_pipeline.backups import search, show
    from dash_pipeline.settings import load_settings

    _end_in_good_order()
    settings = load_settings()
    # The second is drilled whatever the first has shown, and each is told of as soon as it is done.
    found = {}
    try:
        for name, it in (
            ("database", lambda: database.drill(settings, _say)),
            ("search", lambda: search.drill(settings)),
        ):
            if only in (None, name):
                found[name] = it()
                if not json:
                    out.print(show.drill_text(found[name]), highlight=False, soft_wrap=True)
    finally:
        if json:
            out.print_json(data=show.as_json(found))
    if any(one.differences for one in found.values()):
        raise typer.Exit(1)


@app.command()
def restore(
    to: Annotated[str, typer.Option(metavar="TIME", help="UTC, as in 2026-11-25T14:00; without it all there is.")] = "",
    into: Annotated[Path | None, typer.Option(help="An empty folder; the stack's own without it.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The server's port; a free one without it.")] = 0,
    stopped: Annotated[bool, typer.Option("--stopped", help="Stop the server: its folder is to be moved.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Restore the database as it was at a moment into a folder, and start a server on it."""
    from dash_pipeline.backups import restore as it
    from dash_pipeline.backups import show
    from dash_pipeline.settings import load_settings

    _end_in_good_order()
    found = it.restore(load_settings(), it.moment(to) if to else None, into, port, _say, stopped=stopped)
    if json:
        out.print_json(data=show.as_json(found))
    else:
        out.print(show.restored_text(found), highlight=False, soft_wrap=True)


def _say(text: str) -> None:
    err.print(text, highlight=False, soft_wrap=True)


def _end_in_good_order() -> None:
    """SIGTERM ends us as Ctrl-C does: what was begun is cleaned up."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


@app.command()
def api(
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 18080,
) -> None:
    """Serve the read API until it is told to stop; /docs describes it."""
    from dash_pipeline.api.app import run
    from dash_pipeline.settings import load_settings

    run(load_settings(), host, port)


api_keys_app = typer.Typer(no_args_is_help=True, help="Make, show and revoke keys of the read API.")
app.add_typer(api_keys_app, name="api-keys")


@api_keys_app.command("add")
def api_keys_add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is.")],
    tier: Annotated[str, typer.Option(help="One of DASH_API_TIERS: its rates.")] = "standard",
) -> None:
    """Make a key and print it, this once: only its SHA-256 is kept."""
    from dash_pipeline.settings import load_settings
    from dash_pipeline.storage import api_keys, timescale

    settings = load_settings()
    with timescale.session(settings) as conn:
        print(api_keys.add(conn, name, tier, list(settings.api_tiers)))


@api_keys_app.command("list")
def api_keys_list(
    keys_map: Annotated[
        bool, typer.Option("--keys-map", help="Print them as the load balancer's keys.map instead.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show all keys: name, tier, and since when they are there or revoked; never the key itself."""
    from rich.table import Table

    from dash_pipeline.settings import load_settings
    from dash_pipeline.storage import api_keys, timescale

    with timescale.session(load_settings()) as conn:
        found = api_keys.keys(conn)
    if keys_map:
        # The load balancer's classes; keys of other tiers go in between, as those that it does not know do.
        for key in found:
            if key.tier in ("paying", "batch") and not key.revoked_at:
                print(f"{key.hash} {key.tier}")
    elif json:
        out.print_json(data=[vars(key) for key in found], default=lambda time: time.isoformat())
    else:
        table = Table("name", "tier", "made", "revoked", box=None, pad_edge=False)
        for key in found:
            times = [f"{time:%Y-%m-%d %H:%M}" if time else "" for time in (key.created_at, key.revoked_at)]
            table.add_row(key.name, key.tier, *times)
        out.print(table)


@api_keys_app.command("revoke")
def api_keys_revoke(name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is.")]) -> None:
    """Refuse a key from now on; the API knows within DASH_API_KEY_CACHE_S seconds."""
    from dash_pipeline.settings import load_settings
    from dash_pipeline.storage import api_keys, timescale

    with timescale.session(load_settings()) as conn:
        api_keys.revoke(conn, name)
    out.print(f"{name} is revoked", highlight=False)


search_app = typer.Typer(no_args_is_help=True, help="Ask the search indexes, or build them again.")
app.add_typer(search_app, name="search")

ChainOption = Annotated[str, typer.Option(help="The chain's name in the registry.")]
SizeOption = Annotated[int, typer.Option(min=1, max=1000, help="How many to show at most.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@search_app.command("token")
def search_token(
    address: Annotated[str, typer.Argument(help="The token's contract, 0x...")],
    chain: ChainOption = "ethereum",
    json: JsonOption = False,
) -> None:
    """Show a token: price, change, volume, trades and liquidity over the chain's last hour, day and week."""
    from dash_pipeline.settings import load_settings
    from dash_pipeline.storage import search
    from dash_pipeline.storage.search import show

    found = search.token(search.client(load_settings()), chain, address)
    if found is None:
        raise DashError(f"no token {address} on {chain} in the index")
    if json:
        out.print_json(data=found)
    else:
        out.print(show.token_table(found))


@search_app.command("top")
def search_top(
    window: Annotated[str, typer.Option(help="1h, 24h or 7d.")] = "7d",
    by: Annotated[str, typer.Option(help="change, volume, volume_quote, trades or liquidity_change.")] = "change",
    min_liquidity: Annotated[float, typer.Option(min=0, help="In the token's quote token.")] = 0,
    size: SizeOption = 10,
    chain: ChainOption = "ethereum",
    json: JsonOption = False,
) -> None:
    """Show the tokens that lead a chain's last hour, day or week."""
    from dash_pipeline.settings import load_settings
    from dash_pipeline.storage import search
    from dash_pipeline.storage.search import show

    found = search.top_tokens(search.client(load_settings()), chain, window, by, size, min_liquidity)
    if json:
        out.print_json(data=found)
    else:
        out.print(show.tokens_table(found, window, by))


@search_app.command("wallet")
def search_wallet(
    wallet: Annotated[str, typer.Argument(help="The wallet or contract, 0x...")],
    days: Annotated[int, typer.Option(min=1, max=1000, help="Active days to show at most.")] = 7,
    size: SizeOption = 10,
    chain: ChainOption = "ethereum",
    json: JsonOption = False,
) -> None:
    """Show what a wallet did: its last active days and its newest transactions."""
    from dash_pipeline.settings import load_settings
    from dash_pipeline.storage import search
    from dash_pipeline.storage.search import show

    client = search.client(load_settings())
    active = search.wallet_days(client, chain, wallet, days)
    newest = search.wallet_transactions(client, chain, wallet, size)
    if json:
        out.print_json(data={"days": active, "transactions": newest})
    else:
        out.print(show.wallet_days_table(active))
        out.print(show.transactions_table(newest))


@search_app.command("rebuild")
def search_rebuild(
    index: Annotated[str, typer.Argument(help="transactions, token-performance or wallet-activity.")],
    chain: Annotated[str, typer.Option(help="Only this chain; all without.")] = "",
    json: JsonOption = False,
) -> None:
    """Build an index again from TimescaleDB and swap it in; searches and lanes go on meanwhile."""
    from dash_pipeline.feed import show
    from dash_pipeline.settings import load_settings
    from dash_pipeline.storage import search

    with show.bars(err) as progress:
        written = search.rebuild(
            load_settings(), index, chain or None, lambda done, total: progress(f"{index}: blocks", done, total)
        )
    documents = {name: one.documents for name, one in written.items()}
    if json:
        out.print_json(data=documents)
    else:
        for name, count in documents.items():
            out.print(f"{index}-{name}: {count:,} documents", highlight=False)


@search_app.command("snapshot")
def search_snapshot() -> None:
    """Take a snapshot of the indexes, and delete those that are no longer kept."""
    from dash_pipeline.backups import search
    from dash_pipeline.settings import load_settings

    settings = load_settings()
    taken = search.snapshot(settings, _say)
    search.forget(settings)
    out.print(f"{taken.name}: {taken.documents:,} documents in {taken.seconds:.1f} s", highlight=False)


@search_app.command("snapshots")
def search_snapshots(json: JsonOption = False) -> None:
    """Show the snapshots of the indexes, newest first."""
    from dash_pipeline.backups import search
    from dash_pipeline.settings import load_settings

    found = search.snapshots(load_settings())
    if json:
        out.print_json(data=[{"name": one.name, "documents": one.documents} for one in found])
    else:
        for one in found:
            out.print(f"{one.name} {one.documents:,} documents in {len(one.indexes)} indexes", highlight=False)


@search_app.command("restore")
def search_restore(
    snapshot: Annotated[str, typer.Argument(help="A snapshot's name; the newest without.")] = "",
    json: JsonOption = False,
) -> None:
    """Put a snapshot in place of the indexes; `search rebuild` then adds what was committed after it."""
    from dash_pipeline.backups import search
    from dash_pipeline.settings import load_settings

    done = search.restore(load_settings(), snapshot)
    if json:
        out.print_json(data={"name": done.name, "documents": done.documents})
    else:
        out.print(f"{done.name}: {done.documents:,} documents are back", highlight=False)


@app.command()
def alerts(
    severity: Annotated[Literal["low", "medium", "high"] | None, typer.Option(help="Only these; all without.")] = None,
    chain: Annotated[str, typer.Option(help="Only this chain's; all without.")] = "",
    size: SizeOption = 50,
    json: JsonOption = False,
) -> None:
    """Show the newest alerts: pool, time, evidence, predictions, and whether they arrived."""
    from dash_pipeline.alerts import show
    from dash_pipeline.settings import load_settings
    from dash_pipeline.storage import timescale

    with timescale.connect(load_settings()) as conn:
        found = show.alerts(conn, severity=severity, chain=chain or None, limit=size)
    if json:
        out.print_json(data=found)
    else:
        out.print(show.alerts_table(found))


@app.command()
def score(
    address: Annotated[str, typer.Argument(metavar="POOL|WALLET", help="A pool or a wallet, 0x...")],
    chain: ChainOption = "ethereum",
    json: JsonOption = False,
) -> None:
    """Score a pool or wallet with the champions, as of the chain's newest block, and say what the score is made of."""
    from dash_pipeline.predictions import explain
    from dash_pipeline.settings import load_settings

    said = explain.explain(load_settings(), chain, address)
    if json:
        out.print_json(data=explain.as_json(said))
    else:
        for prediction in said:
            out.print(explain.text(prediction), highlight=False, soft_wrap=True)


models_app = typer.Typer(no_args_is_help=True, help="Train, compare, promote and roll back models.")
app.add_typer(models_app, name="models")

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="pool_risk, wallet_risk or liquidity_outlook.")]


@models_app.command("list")
def models_list(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="Only this one.")] = "", json: JsonOption = False
) -> None:
    """Show every version, newest first, with what it reached, and which is the champion."""
    from dash_pipeline.models import show
    from dash_pipeline.settings import load_settings

    found = show.versions(load_settings(), model)
    if json:
        out.print_json(data=found)
    else:
        out.print(show.versions_table(found))


@models_app.command("train")
def models_train(
    model: ModelArgument,
    labels: Annotated[
        str, typer.Option(help="csv or Parquet, a path or s3://; else DASH_LABELS, else the sample.")
    ] = "",
    trials: Annotated[int, typer.Option(min=0, max=500, help="Search parameters with so many trials first.")] = 0,
    json: JsonOption = False,
) -> None:
    """Train a version on labelled data, and promote it if it beats the champion on rows that neither has seen."""
    from dash_pipeline.models import lifecycle, show
    from dash_pipeline.settings import load_settings

    settings = load_settings()
    lifecycle.store_labels(settings, model, labels)
    done = lifecycle.train(
        settings, model, trials=trials, say=lambda text: err.print(text, highlight=False, soft_wrap=True)
    )
    if json:
        out.print_json(data=show.training_json(done))
    else:
        out.print(show.training_table(done))
        fate = "champion" if done.promoted else "not promoted"
        out.print(f"{done.version}: {fate}: {done.verdict}", highlight=False, soft_wrap=True)


@models_app.command("promote")
def models_promote(
    model: ModelArgument, version: Annotated[str, typer.Argument(metavar="VERSION", help="As `list` names it.")]
) -> None:
    """Make a version the champion; lanes and engine take it up within a minute."""
    from dash_pipeline.models import lifecycle
    from dash_pipeline.settings import load_settings

    out.print(lifecycle.promote(load_settings(), model, version), highlight=False)


@models_app.command("rollback")
def models_rollback(model: ModelArgument) -> None:
    """Make the champion before this one the champion again."""
    from dash_pipeline.models import lifecycle
    from dash_pipeline.settings import load_settings

    out.print(lifecycle.rollback(load_settings(), model), highlight=False)


@models_app.command("evaluate")
def models_evaluate(
    model: ModelArgument,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Labelled rows, csv or Parquet, a path or s3://.")],
    version: Annotated[str, typer.Option(help="This version instead of the champion.")] = "",
    json: JsonOption = False,
) -> None:
    """Score the champion on labelled rows: accuracy, AUC, precision, recall, F1, MCC."""
    from dash_pipeline.models import lifecycle, show
    from dash_pipeline.settings import load_settings

    found = lifecycle.evaluate(load_settings(), model, file, version)
    if json:
        out.print_json(data=found)
    else:
        out.print(show.metrics_table(found))


archive_app = typer.Typer(no_args_is_help=True, help="Rows on S3: what is there, and its care.")
app.add_typer(archive_app, name="archive")


@archive_app.command("list")
def archive_list(chain: Annotated[str, typer.Option(help="Only this chain.")] = "", json: JsonOption = False) -> None:
    """Show which days of which tables are archived."""
    from dash_pipeline.archive import show
    from dash_pipeline.settings import load_settings
    from dash_pipeline.storage.timescale import connect

    with connect(load_settings()) as conn:
        found = show.days(conn, chain or None)
    if json:
        out.print_json(data=found)
    else:
        out.print(show.days_table(found) if found else "nothing is archived yet")


@archive_app.command("run")
def archive_run(chain: Annotated[str, typer.Option(help="Only this chain.")] = "") -> None:
    """Archive what is older than DASH_RETENTION_DAYS, now."""
    from dash_pipeline.archive.retain import retain
    from dash_pipeline.settings import load_settings

    rows = retain(
        load_settings(),
        "by hand",
        chain=chain or None,
        done=lambda day, entries: err.print(
            f"{day.folder}: {sum(one.rows for one in entries):,} rows", highlight=False, soft_wrap=True
        ),
    )
    out.print(f"{rows:,} rows archived", highlight=False)


@archive_app.command("check")
def archive_check(
    table: Annotated[str, typer.Option(help="Only this table.")] = "",
    chain: Annotated[str, typer.Option(help="Only this chain.")] = "",
) -> None:
    """Read every object again and compare it with what was written; look for rows that are missing. Exit code 2 when
    an object is not the same, or rows or days are in neither place."""
    from dash_pipeline.archive.check import chains, check, lost, missing_days
    from dash_pipeline.settings import load_settings

    settings = load_settings()
    found = check(settings, table or None, chain or None)
    out.print(f"{found.objects:,} objects, {found.rows:,} rows, {found.size / 1e6:,.1f} MB are right", highlight=False)
    wrong = list(found.wrong)
    if not table:
        for name in [chain] if chain else chains(settings):
            wrong += [f"{name}: {line}" for line in (*missing_days(settings, name).wrong, *lost(settings, name))]
    if wrong:
        raise DashError("\n".join(wrong))


@archive_app.command("compact")
def archive_compact() -> None:
    """Merge the small objects of each day."""
    from dash_pipeline.archive.rewrite import compact
    from dash_pipeline.settings import load_settings

    out.print(f"{compact(load_settings(), 'by hand'):,} objects fewer", highlight=False)


@archive_app.command("rotate")
def archive_rotate() -> None:
    """Encrypt every object with the first key of DASH_ENCRYPTION_KEYS; the other keys can go afterwards."""
    from dash_pipeline.archive.rewrite import rotate
    from dash_pipeline.settings import load_settings

    out.print(f"{rotate(load_settings(), 'by hand'):,} objects encrypted anew", highlight=False)


_DAY = ["%Y-%m-%d"]


@archive_app.command("derive")
def archive_derive(
    chain: Annotated[str, typer.Option(help="Only this chain.")] = "",
    first: Annotated[
        datetime | None, typer.Option("--from", formats=_DAY, help="First day, UTC; else the first archived one.")
    ] = None,
    last: Annotated[
        datetime | None, typer.Option("--to", formats=_DAY, help="Last day, included; else the last archived one.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which days differ.")] = False,
    json: JsonOption = False,
) -> None:
    """Decode archived logs again: days whose pool_events differ are replaced, missing pools are added. Exit code 2 when
    a day is refused."""
    from dash_pipeline.archive import show
    from dash_pipeline.archive.derive import derive
    from dash_pipeline.settings import load_settings

    found = derive(
        load_settings(),
        "by hand",
        chain or None,
        first and first.date(),
        last and last.date(),
        dry_run=dry_run,
        done=lambda day: err.print(show.derived_text(day, dry_run=dry_run), highlight=False, soft_wrap=True),
    )
    if json:
        out.print_json(data=[vars(day) for day in found], default=str)
    else:
        out.print(f"{len(found):,} days, {sum(day.differs for day in found):,} with other rows", highlight=False)
    if refused := [day.refused for day in found if day.refused]:
        raise DashError("\n".join(refused))


@archive_app.command("anomalies")
def archive_anomalies(
    first: Annotated[datetime, typer.Option("--from", formats=_DAY, help="First day, UTC.")],
    last: Annotated[datetime, typer.Option("--to", formats=_DAY, help="Last day, included.")],
    chain: ChainOption = "ethereum",
    json: JsonOption = False,
) -> None:
    """Ask today's detectors about days of the past, archived or hot. Nothing is stored, and nobody is alerted."""
    from dash_pipeline.archive import show
    from dash_pipeline.archive.anomalies import anomalies
    from dash_pipeline.chains import load_chains
    from dash_pipeline.settings import load_settings

    settings = load_settings()
    registered = load_chains(settings.chains_file).get(chain)
    found = show.anomalies_json(
        anomalies(settings, chain, registered.quotes if registered else (), first.date(), last.date())
    )
    if json:
        out.print_json(data=found)
    else:
        out.print(show.anomalies_table(found) if found else "no anomalies")


@app.command("query")
def query_command(sql: Annotated[str, typer.Argument(metavar="SQL")], json: JsonOption = False) -> None:
    """Ask hot and archived rows together, in SQL: tables blocks, transactions, logs, token_transfers ... anomalies,
    predictions, dead_letters."""
    import polars as pl

    from dash_pipeline.settings import load_settings
    from dash_pipeline.storage.query import query

    found = query(load_settings(), sql)
    if json:
        print(found.write_json())
    else:
        with pl.Config(tbl_rows=100, tbl_cols=-1, fmt_str_lengths=80, tbl_hide_dataframe_shape=True):
            print(found)


def main() -> None:
    """Run the command line; a DashError becomes its one line and its exit code."""
    try:
        app()
    except DashError as error:
        err.print(str(error), markup=False, style="red", soft_wrap=True)
        sys.exit(error.exit_code)
