"""The chain registry: what is true of a chain wherever the platform runs.

Belongs here: reading `chains.toml` (or the file that replaces it) into typed, checked values.
Does not belong here: what differs between machines (`settings.py`) or is learnt from the chain (the tables).
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from dash_pipeline.errors import DashError

REGISTRY = Path(__file__).with_name("chains.toml")

Address = Annotated[str, Field(pattern=r"^0x[0-9a-fA-F]{40}$"), AfterValidator(str.lower)]
Hash = Annotated[str, Field(pattern=r"^0x[0-9a-fA-F]{64}$"), AfterValidator(str.lower)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class QuoteToken(_Frozen):
    """A token that prices are expressed in."""

    address: Address
    symbol: str = Field(min_length=1)
    decimals: int = Field(ge=0, le=77, description="10**-decimals is the smallest unit")
    stable: bool = Field(description="one unit is about one US dollar")

    @property
    def contract(self) -> bytes:
        """The address as the tables have it."""
        return bytes.fromhex(self.address[2:])


class Factories(_Frozen):
    """Contracts that make pools, by the interface those pools have."""

    uniswap_v2: tuple[Address, ...] = Field(default=(), strict=False)
    uniswap_v3: tuple[Address, ...] = Field(default=(), strict=False)


class Chain(_Frozen):
    """One chain; addresses and hashes are `0x` and lower-case hex."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="topic prefix and `chain` column")
    title: str = Field(min_length=1)
    chain_id: int = Field(ge=1, description="EIP-155")
    genesis_hash: Hash | None = None
    block_time_s: float = Field(gt=0, description="seconds from block to block, to be expected")
    quote_tokens: tuple[QuoteToken, ...] = Field(default=(), strict=False)
    factories: Factories = Factories()

    @property
    def quotes(self) -> list[bytes]:
        """The contracts of the quote tokens, the preferred first."""
        return [token.contract for token in self.quote_tokens]


def load_chains(path: Path | None = None) -> dict[str, Chain]:
    """The chains of the registry by name, in the file's order; `path` is `settings.chains_file`.

    Raises DashError with one line for each mistake: the file, the chain, the key, what is wrong.
    """
    file = path or REGISTRY
    chains: dict[str, Chain] = {}
    mistakes: list[str] = []
    for name, table in _tables(file).items():
        try:
            chains[name] = Chain.model_validate({**table, "name": name} if isinstance(table, dict) else table)
        except ValidationError as error:
            mistakes += [f"{file}: [{name}] {_explain(problem)}" for problem in error.errors()]
    mistakes += _shared_ids(file, chains)
    if mistakes:
        raise DashError("\n".join(mistakes))
    return chains


def _tables(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            tables = tomllib.load(stream)
    except OSError as error:
        raise DashError(f"{file}: {error.strerror or error} (set by DASH_CHAINS_FILE)") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise DashError(f"{file}: {error}") from None
    if not tables:
        raise DashError(f"{file}: no chain in it")
    return tables


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "the entry"
    return f"{key}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"


def _shared_ids(file: Path, chains: dict[str, Chain]) -> list[str]:
    first: dict[int, str] = {}
    return [
        f"{file}: [{chain.name}] chain_id: {chain.chain_id} is already [{owner}]'s"
        for chain in chains.values()
        if (owner := first.setdefault(chain.chain_id, chain.name)) != chain.name
    ]
