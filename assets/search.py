"""The search indexes as assets.

Belongs here: what each index is made from. Does not belong here: mappings and documents
(`dash_pipeline/storage/search`).

Lanes keep the indexes fresh and report it; materialising one by hand builds it again from the hot tables, behind its
alias, so that readers never see a half-full index.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetsDefinition,
    Config,
    Failure,
    MaterializeResult,
    asset,
    multi_asset_check,
)
from pydantic import Field

from assets import owners
from assets.keys import SEARCH, index_key, table_key
from dash_pipeline.chains import Chain
from dash_pipeline.errors import DashError
from dash_pipeline.settings import settings
from dash_pipeline.storage.checks import indexes_behind
from resources.opensearch import OpenSearchResource
from resources.timescale import TimescaleResource

#: Index -> what a document is, and the tables it is made from.
INDEXES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "transactions": (
        "A document per transaction, with all its logs whole; by wallet, sender and receiver searchable.",
        ("transactions", "logs", "token_transfers"),
    ),
    "token-performance": (
        "A document per token: price, change, volume, trades and liquidity over 1 h, 24 h and 7 d of the chain's time.",
        ("pool_events", "pools", "tokens"),
    ),
    "wallet-activity": (
        "A document per wallet and day: transactions, transfers and trades.",
        ("transactions", "token_transfers", "pool_events"),
    ),
}


class RebuildConfig(Config):
    """What is built again."""

    chain: str | None = Field(None, description="only this chain's documents; without it, every chain's")


def index_assets(chains: Iterable[Chain]) -> list[AssetsDefinition]:
    """An asset per index, downstream of the tables of every chain."""
    names = [chain.name for chain in chains]
    return [_index(index, names) for index in INDEXES]


def _index(index: str, chains: list[str]) -> AssetsDefinition:
    about, tables = INDEXES[index]

    @asset(
        key=index_key(index),
        deps=[table_key(chain, table) for chain in chains for table in tables],
        description=f"{about}\n\nAlias `{index}`. Lanes keep it fresh; materialising it builds it again.",
        group_name=SEARCH,
        owners=[owners.SEARCH],
        kinds={"opensearch"},
    )
    def rebuild(
        context: AssetExecutionContext, config: RebuildConfig, opensearch: OpenSearchResource
    ) -> MaterializeResult[Any]:
        try:
            written = opensearch.rebuild(index, config.chain, _every_tenth(context))
        except DashError as error:
            raise Failure(str(error), allow_retries=False) from None
        return MaterializeResult(
            metadata={
                **{f"{chain}: documents rebuilt": done.documents for chain, done in written.items()},
                **{f"{chain}: documents rejected": done.rejected for chain, done in written.items()},
            }
        )

    return rebuild


def _every_tenth(context: AssetExecutionContext) -> Callable[[int, int], None]:
    """Progress for the run's log: ten lines, however many steps there are."""

    def tell(done: int, total: int) -> None:
        if done * 10 // max(total, 1) > (done - 1) * 10 // max(total, 1):
            context.log.info(f"{done:,} of {total:,} steps")

    return tell


def index_checks() -> AssetChecksDefinition:
    """Whether the indexes show what is committed, by the chains' own time."""
    specs = [
        AssetCheckSpec(
            "fresh",
            asset=index_key(index),
            description="For every chain, what the indexes do not show yet is at most `DASH_FRESH_WITHIN_S` seconds of"
            " the chain's time older than its newest block.",
        )
        for index in INDEXES
    ]

    @multi_asset_check(name="check_indexes", specs=specs, can_subset=True)
    def fresh(context: AssetCheckExecutionContext, timescale: TimescaleResource) -> Iterator[AssetCheckResult]:
        limit = settings().fresh_within_s
        with timescale.connect() as conn:
            behind = indexes_behind(conn)
        for key in sorted(context.selected_asset_check_keys):
            yield AssetCheckResult(
                asset_key=key.asset_key,
                check_name=key.name,
                passed=all(seconds <= limit for seconds in behind.values()),
                severity=AssetCheckSeverity.WARN,
                metadata={f"{chain}: behind, s": round(seconds, 1) for chain, seconds in behind.items()},
            )

    return fresh
