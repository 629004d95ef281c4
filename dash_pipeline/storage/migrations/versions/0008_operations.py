"""What operators are told and shown: notices with their deliveries, and what lanes measured between two reports."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

OPERATIONS = """
CREATE TABLE ops.notices (
    key text PRIMARY KEY, severity text NOT NULL CHECK (severity IN ('low', 'medium', 'high')), owner text NOT NULL,
    title text NOT NULL, body text NOT NULL, links jsonb NOT NULL,
    opened_at timestamptz NOT NULL DEFAULT clock_timestamp(), seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    told_at timestamptz NOT NULL DEFAULT clock_timestamp(), resolved_at timestamptz, times int8 NOT NULL DEFAULT 1);
COMMENT ON TABLE ops.notices IS 'What operators are told of, by key; open until resolved_at. seen_at and times count
 how often it was found, told_at is when it was last put into ops.notice_deliveries';

CREATE TABLE ops.notice_deliveries (
    id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, key text NOT NULL, channel text NOT NULL,
    event text NOT NULL CHECK (event IN ('raised', 'repeated', 'resolved')), message jsonb NOT NULL,
    queued_at timestamptz NOT NULL DEFAULT clock_timestamp(), attempts int4 NOT NULL DEFAULT 0,
    next_try_at timestamptz NOT NULL DEFAULT clock_timestamp(), delivered_at timestamptz, error text, dropped text);
CREATE INDEX notice_deliveries_waiting ON ops.notice_deliveries (channel, id)
    WHERE delivered_at IS NULL AND dropped IS NULL;
COMMENT ON TABLE ops.notice_deliveries IS 'Notices on their way to a channel, sent in the order of id; dropped says why
 one was given up';

CREATE TABLE ops.checkpoints (
    id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(),
    chain text NOT NULL, lane text NOT NULL, run_id text NOT NULL, seconds float8 NOT NULL, messages int8 NOT NULL,
    bytes int8 NOT NULL, rows int8 NOT NULL, dead_letters int8 NOT NULL, reorgs int8 NOT NULL, anomalies int8 NOT NULL,
    lag int8 NOT NULL, index_behind_s float8 NOT NULL, ingestion_p50_ms float8, ingestion_p99_ms float8,
    processing_p50_ms float8, processing_p99_ms float8, output_p50_ms float8, output_p99_ms float8,
    end_to_end_p50_ms float8, end_to_end_p99_ms float8);
CREATE INDEX checkpoints_at ON ops.checkpoints (at, chain);
COMMENT ON TABLE ops.checkpoints IS 'What lanes did between two reports. Written beside the commits, best effort: rows
 may be missing, and nothing rests on them but plots';
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(OPERATIONS)


def downgrade() -> None:
    op.get_bind().exec_driver_sql("DROP TABLE ops.checkpoints, ops.notice_deliveries, ops.notices")
