"""The hot store: schema `chain` (canonical rows), `side` (rows of other branches), `ops` (the platform's own state)."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

HYPERTABLES = ("blocks", "transactions", "logs", "token_transfers", "pool_events", "traces")

CHAIN = """
CREATE SCHEMA chain;
CREATE SCHEMA side;
CREATE SCHEMA ops;

CREATE TABLE chain.blocks (
    chain text NOT NULL, ts timestamptz NOT NULL, block_number int8 NOT NULL, block_hash bytea NOT NULL,
    parent_hash bytea NOT NULL, miner bytea, nonce bytea, sha3_uncles bytea, logs_bloom bytea,
    transactions_root bytea, state_root bytea, receipts_root bytea, withdrawals_root bytea, extra_data bytea,
    difficulty numeric, total_difficulty numeric, size_bytes int8, gas_limit int8, gas_used int8,
    base_fee_per_gas int8, blob_gas_used int8, excess_blob_gas int8, transaction_count int4,
    withdrawals jsonb, extra jsonb);
CREATE TABLE chain.transactions (
    chain text NOT NULL, ts timestamptz NOT NULL, block_number int8 NOT NULL, block_hash bytea NOT NULL,
    tx_hash bytea NOT NULL, tx_index int4 NOT NULL, nonce int8, from_address bytea NOT NULL, to_address bytea,
    value numeric NOT NULL, value_f float8 NOT NULL, gas int8, gas_price int8, max_fee_per_gas int8,
    max_priority_fee_per_gas int8, max_fee_per_blob_gas int8, transaction_type int4, input bytea,
    blob_versioned_hashes jsonb, receipt_status int4, receipt_gas_used int8, receipt_cumulative_gas_used int8,
    receipt_effective_gas_price int8, receipt_contract_address bytea, receipt_root bytea, receipt_extra jsonb,
    extra jsonb);
CREATE TABLE chain.logs (
    chain text NOT NULL, ts timestamptz NOT NULL, block_number int8 NOT NULL, block_hash bytea NOT NULL,
    tx_hash bytea NOT NULL, tx_index int4, log_index int4 NOT NULL, address bytea NOT NULL,
    topic0 bytea, topic1 bytea, topic2 bytea, topic3 bytea, data bytea NOT NULL, extra jsonb);
CREATE TABLE chain.token_transfers (
    chain text NOT NULL, ts timestamptz NOT NULL, block_number int8 NOT NULL, block_hash bytea NOT NULL,
    tx_hash bytea NOT NULL, log_index int4 NOT NULL, token_address bytea NOT NULL, from_address bytea NOT NULL,
    to_address bytea NOT NULL, value numeric NOT NULL, value_f float8 NOT NULL, extra jsonb);
CREATE TABLE chain.pool_events (
    chain text NOT NULL, ts timestamptz NOT NULL, block_number int8 NOT NULL, block_hash bytea NOT NULL,
    tx_hash bytea NOT NULL, log_index int4 NOT NULL, protocol text NOT NULL, event text NOT NULL,
    pool bytea NOT NULL, sender bytea, recipient bytea, token0 bytea, token1 bytea,
    amount0 numeric, amount1 numeric, amount0_f float8, amount1_f float8,
    amount0_out numeric, amount1_out numeric,
    reserve0 numeric, reserve1 numeric, reserve0_f float8, reserve1_f float8,
    liquidity numeric, sqrt_price_x96 numeric, tick int4, tick_lower int4, tick_upper int4, fee int4,
    tick_spacing int4);
CREATE TABLE chain.traces (
    chain text NOT NULL, ts timestamptz NOT NULL, block_number int8 NOT NULL, block_hash bytea NOT NULL,
    trace_id text NOT NULL, tx_hash bytea, tx_index int4, trace_index int4, from_address bytea, to_address bytea,
    value numeric, value_f float8, input bytea, output bytea, trace_type text, call_type text, reward_type text,
    gas int8, gas_used int8, subtraces int4, trace_address text, error text, status int4, extra jsonb);
CREATE TABLE chain.contracts (
    chain text NOT NULL, ts timestamptz NOT NULL, block_number int8 NOT NULL, block_hash bytea NOT NULL,
    address bytea NOT NULL, bytecode bytea, function_sighashes jsonb, is_erc20 bool, is_erc721 bool, extra jsonb);
CREATE TABLE chain.tokens (
    chain text NOT NULL, ts timestamptz NOT NULL, block_number int8 NOT NULL, block_hash bytea NOT NULL,
    address bytea NOT NULL, symbol text, name text, decimals int4, total_supply numeric, extra jsonb);
CREATE TABLE chain.pools (
    chain text NOT NULL, ts timestamptz NOT NULL, block_number int8 NOT NULL, block_hash bytea NOT NULL,
    tx_hash bytea NOT NULL, address bytea NOT NULL, protocol text NOT NULL, factory bytea NOT NULL,
    token0 bytea NOT NULL, token1 bytea NOT NULL, fee int4);
"""

# What tells rows apart comes first: an index is searched by comparing, and rows of one chain have the chain in common.
KEYS = {
    "blocks": "block_hash, chain, ts",
    "transactions": "block_hash, tx_hash, chain, ts",
    "logs": "block_hash, log_index, chain, ts",
    "token_transfers": "block_hash, log_index, chain, ts",
    "pool_events": "block_hash, log_index, chain, ts",
    "traces": "block_hash, trace_id, chain, ts",
    "contracts": "address, block_hash, chain",
    "tokens": "address, block_hash, chain",
    "pools": "address, block_hash, chain",
}

# An index costs every row about as much as a third of its way from Kafka: each has a reader that could not do without.
# A wallet's transfers are found by its blocks (rollup.wallet_blocks).
INDEXES = """
CREATE INDEX blocks_number ON chain.blocks (block_number, chain);
CREATE INDEX transactions_from ON chain.transactions (from_address, ts DESC);
CREATE INDEX transactions_to ON chain.transactions (to_address, ts DESC);
CREATE INDEX token_transfers_token ON chain.token_transfers (token_address, ts DESC);
CREATE INDEX pool_events_pool ON chain.pool_events (pool, ts DESC);
CREATE INDEX pools_token0 ON chain.pools (token0);
CREATE INDEX pools_token1 ON chain.pools (token1);
"""

OPS = """
CREATE TABLE ops.stream_offsets (
    topic text, partition int, next_offset int8 NOT NULL, updated_at timestamptz NOT NULL DEFAULT now(),
    run_id text, PRIMARY KEY (topic, partition));
COMMENT ON TABLE ops.stream_offsets IS 'The truth about how far each partition is ingested; advanced with the rows';

CREATE TABLE ops.dead_letters (
    topic text, partition int, "offset" int8, reason text NOT NULL, payload bytea, payload_bytes int8 NOT NULL,
    payload_sha256 bytea, record_ts timestamptz, run_id text, seen_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition, "offset"));
COMMENT ON COLUMN ops.dead_letters.payload IS 'first 64 KiB; the whole message is on the dead-letter topic';

CREATE TYPE ops.block_status AS ENUM
    ('provisional', 'canonical', 'orphaned', 'detached', 'refused', 'unseen');
CREATE TABLE ops.block_tree (
    chain text, block_hash bytea, block_number int8 NOT NULL, parent_hash bytea, ts timestamptz NOT NULL,
    status ops.block_status NOT NULL, seen_ms int8, topic text, partition int, "offset" int8,
    updated_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (block_hash, chain));
CREATE INDEX block_tree_number ON ops.block_tree (block_number, chain);
CREATE INDEX block_tree_detached ON ops.block_tree (chain) WHERE status = 'detached';
COMMENT ON TABLE ops.block_tree IS 'Every block heard of and the branch it is on. provisional: rows are in, the block
 itself not yet. unseen: rows are aside because another block holds the height. canonical rows are in schema chain,
 orphaned, detached, refused and unseen ones in schema side';

CREATE TABLE ops.chains (
    chain text PRIMARY KEY, tip_number int8, tip_hash bytea, tip_ts timestamptz,
    finalised_number int8 NOT NULL DEFAULT -1, updated_at timestamptz NOT NULL DEFAULT now());
COMMENT ON TABLE ops.chains IS 'The newest canonical block of each chain (its watermark), and the height that
 no fork may go below';

CREATE TABLE ops.reorgs (
    id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, chain text NOT NULL, depth int NOT NULL,
    fork_number int8 NOT NULL, old_tip_number int8 NOT NULL, old_tip_hash bytea NOT NULL,
    new_tip_number int8 NOT NULL, new_tip_hash bytea NOT NULL, orphaned_blocks int NOT NULL,
    restored_blocks int NOT NULL, rows_moved int8 NOT NULL, run_id text,
    at timestamptz NOT NULL DEFAULT clock_timestamp());

CREATE TABLE ops.search_outbox (
    id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, chain text NOT NULL, blocks bytea[] NOT NULL,
    ts_min timestamptz NOT NULL, ts_max timestamptz NOT NULL, topics text[] NOT NULL, partitions int[] NOT NULL,
    next_offsets int8[] NOT NULL, committed_at timestamptz NOT NULL DEFAULT clock_timestamp());
COMMENT ON TABLE ops.search_outbox IS 'Blocks touched by committed micro-batches that the indexes do not show yet';
CREATE TABLE ops.search_watermark (
    topic text, partition int, next_offset int8 NOT NULL, updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition));
COMMENT ON TABLE ops.search_watermark IS 'Up to which offset of each partition the indexes are complete';
CREATE SEQUENCE ops.search_version;
COMMENT ON SEQUENCE ops.search_version IS 'Taken before the rows of a document are read: a later version has seen
 at least as much';
"""


def upgrade() -> None:
    run = op.get_bind().exec_driver_sql
    run(CHAIN)
    for table in HYPERTABLES:
        by_day = "by_range('ts', INTERVAL '1 day'), create_default_indexes => false"
        run(f"SELECT create_hypertable('chain.{table}', {by_day})")
    for table, key in KEYS.items():
        run(f"CREATE TABLE side.{table} (LIKE chain.{table})")
        for schema in ("chain", "side"):
            run(f"CREATE UNIQUE INDEX {table}_key ON {schema}.{table} ({key})")
            if not key.startswith("block_hash"):
                run(f"CREATE INDEX {table}_block ON {schema}.{table} (block_hash, chain)")
    run(INDEXES)
    run(OPS)


def downgrade() -> None:
    run = op.get_bind().exec_driver_sql
    for schema in ("chain", "side", "ops"):
        run(f"DROP SCHEMA {schema} CASCADE")
