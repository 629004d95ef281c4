"""Schema `intel`: what the platform concluded from the chain: anomalies, predictions, alerts and their deliveries."""

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

CREATE TABLE intel.predictions (
    anomaly_id bytea, model text, subject bytea, subject_kind text NOT NULL CHECK (subject_kind IN ('pool', 'wallet')),
    chain text NOT NULL, as_of timestamptz NOT NULL, version text NOT NULL, score float8, reason text,
    features jsonb NOT NULL, contributions jsonb NOT NULL, run_id text,
    predicted_at timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (anomaly_id, model, subject));
CREATE INDEX predictions_subject ON intel.predictions (subject, predicted_at DESC);
COMMENT ON TABLE intel.predictions IS 'What the champions said about the pools and wallets of an anomaly. version is
 none where there was no champion; score is null where reason says why there is none';

CREATE TABLE intel.alerts (
    id bytea PRIMARY KEY, chain text NOT NULL, pool bytea NOT NULL, token bytea NOT NULL, kind text NOT NULL,
    severity text NOT NULL CHECK (severity IN ('low', 'medium', 'high')), ts timestamptz NOT NULL,
    block_number int8 NOT NULL, wallets bytea[] NOT NULL, evidence jsonb NOT NULL,
    raised_at timestamptz NOT NULL DEFAULT clock_timestamp(), run_id text, retracted_at timestamptz,
    revision int4 NOT NULL DEFAULT 1, indexed_revision int4 NOT NULL DEFAULT 0);
CREATE INDEX alerts_pool ON intel.alerts (pool, raised_at DESC);
CREATE INDEX alerts_raised ON intel.alerts (raised_at DESC);
CREATE INDEX alerts_unindexed ON intel.alerts (id) WHERE indexed_revision < revision;
COMMENT ON TABLE intel.alerts IS 'Anomalies that people are told of; id is the anomaly''s. A pool''s further anomalies
 within the cool-down raise none unless they are more severe';

CREATE TABLE intel.deliveries (
    alert_id bytea, route text, event text CHECK (event IN ('raised', 'retracted')), attempts int4 NOT NULL DEFAULT 0,
    next_try_at timestamptz NOT NULL DEFAULT clock_timestamp(), delivered_at timestamptz, error text,
    dropped text, PRIMARY KEY (alert_id, route, event));
CREATE INDEX deliveries_due ON intel.deliveries (next_try_at) WHERE delivered_at IS NULL AND dropped IS NULL;
COMMENT ON TABLE intel.deliveries IS 'Who is told of an alert, and whether he was; dropped says why it was given up';
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(INTEL)


def downgrade() -> None:
    op.get_bind().exec_driver_sql("DROP SCHEMA intel CASCADE")
