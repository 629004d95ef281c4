"""Schema `intel`: what the platform concluded from the chain: anomalies."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

INTEL = """
CREATE SCHEMA intel;
COMMENT ON SCHEMA intel IS 'Conclusions. Anomalies are a function of the rows in schema chain: they are written in the
 transaction of the rows, and retracted in the transaction that orphans them';

CREATE TABLE intel.anomalies (
    id bytea PRIMARY KEY, chain text NOT NULL, ts timestamptz NOT NULL, block_number int8 NOT NULL,
    block_hash bytea NOT NULL, tx_hash bytea NOT NULL, log_indexes int4[] NOT NULL, pool bytea NOT NULL,
    token bytea NOT NULL, tokens bytea[] NOT NULL, wallets bytea[] NOT NULL, kind text NOT NULL,
    severity text NOT NULL CHECK (severity IN ('low', 'medium', 'high')), score float8 NOT NULL,
    evidence jsonb NOT NULL, detected_at timestamptz NOT NULL DEFAULT clock_timestamp(), run_id text,
    retracted_at timestamptz, revision int4 NOT NULL DEFAULT 1, published_revision int4 NOT NULL DEFAULT 0);
CREATE INDEX anomalies_pool ON intel.anomalies (pool, ts DESC);
CREATE INDEX anomalies_ts ON intel.anomalies (ts);
CREATE INDEX anomalies_unpublished ON intel.anomalies (chain) WHERE published_revision < revision;
COMMENT ON TABLE intel.anomalies IS 'What detectors found. revision counts changes (retracted, back again);
 published_revision is the newest one that is on topic dash.anomalies';
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(INTEL)


def downgrade() -> None:
    op.get_bind().exec_driver_sql("DROP SCHEMA intel CASCADE")
