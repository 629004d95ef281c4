"""The archive's manifest: which objects hold which rows that are no longer hot."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ARCHIVE = """
CREATE TABLE ops.archive_manifest (
    object text PRIMARY KEY, table_name text NOT NULL, chain text NOT NULL, date date NOT NULL, rows int8 NOT NULL,
    bytes int8 NOT NULL, sha256 bytea NOT NULL, content_hash bytea NOT NULL, schema_version int4 NOT NULL,
    encryption_key text NOT NULL, ts_min timestamptz NOT NULL, ts_max timestamptz NOT NULL, block_min int8 NOT NULL,
    block_max int8 NOT NULL, archived_at timestamptz NOT NULL DEFAULT clock_timestamp(), run_id text,
    replaced_at timestamptz);
CREATE INDEX archive_manifest_day ON ops.archive_manifest (table_name, chain, date) WHERE replaced_at IS NULL;
COMMENT ON TABLE ops.archive_manifest IS 'Objects of rows that are no longer hot. A row of this table and the end of
 its hot rows are one transaction: at every moment a row is either hot or in an object that is listed here and not
 replaced. sha256 is of the object, content_hash of its rows whatever file holds them';
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(ARCHIVE)


def downgrade() -> None:
    op.get_bind().exec_driver_sql("DROP TABLE ops.archive_manifest")
