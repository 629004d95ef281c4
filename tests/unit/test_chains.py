"""The registry that ships is right, and a wrong one says all that is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dash_pipeline.chains import load_chains
from dash_pipeline.errors import DashError


def test_the_registry_in_the_package() -> None:
    chains = load_chains()
    assert {name: chain.chain_id for name, chain in chains.items()} == {
        "ethereum": 1,
        "bsc": 56,
        "avalanche": 43114,
        "polygon": 137,
        "anvil": 31337,
        "anvil_live": 31338,
    }
    assert chains["ethereum"].genesis_hash is not None
    assert chains["ethereum"].genesis_hash.startswith("0xd4e56740")
    assert chains["anvil"].genesis_hash is None
    assert all(chain.quote_tokens for chain in chains.values())


def test_addresses_are_lower_case() -> None:
    tokens = {token.symbol: token for token in load_chains()["ethereum"].quote_tokens}
    assert tokens["USDC"].address == "0xa0b86991c6218b36c1d19d4a2e9eb0ce3606eb48"
    assert (tokens["USDC"].decimals, tokens["USDC"].stable) == (6, True)


def registry(folder: Path, text: str) -> Path:
    file = folder / "chains.toml"
    file.write_text(text)
    return file


def test_a_registry_of_ones_own(tmp_path: Path) -> None:
    file = registry(tmp_path, '[gnosis]\ntitle = "Gnosis"\nchain_id = 100\nblock_time_s = 5\n')
    assert list(load_chains(file)) == ["gnosis"]


def test_every_mistake_has_its_line(tmp_path: Path) -> None:
    file = registry(
        tmp_path,
        """
        [one]
        title = "One"
        chain_id = "1"
        block_time_s = 12
        colour = "blue"
        [two]
        title = "Two"
        chain_id = 2
        block_time_s = 2.0
        quote_tokens = [{ address = "0x12", symbol = "X", decimals = 18, stable = false }]
        [TOO]
        title = "Capitals"
        chain_id = 3
        block_time_s = 0
        """,
    )
    with pytest.raises(DashError) as caught:
        load_chains(file)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{file}: [") for line in lines)
    keys = [line.split("] ", 1)[1].split(":")[0] for line in lines]
    assert keys == ["chain_id", "colour", "quote_tokens.0.address", "name", "block_time_s"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no chain in it"),
        ("[one", "Expected ']'"),
        ("one = 1", "[one]"),
    ],
)
def test_a_file_that_is_no_registry(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DashError) as caught:
        load_chains(registry(tmp_path, text))
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DashError, match=r"none\.toml: No such file or directory"):
        load_chains(tmp_path / "none.toml")


def test_two_chains_with_one_id(tmp_path: Path) -> None:
    body = 'title = "T"\nchain_id = 7\nblock_time_s = 1\n'
    with pytest.raises(DashError, match=r"\[b\] chain_id: 7 is already \[a\]'s"):
        load_chains(registry(tmp_path, f"[a]\n{body}[b]\n{body}"))
