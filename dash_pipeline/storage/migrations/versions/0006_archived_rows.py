"""How many rows of each day have left the hot tables: what the manifest's objects are held against."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

ARCHIVED = """
CREATE TABLE ops.archived_rows (
    table_name text, chain text, date date, rows int8 NOT NULL, PRIMARY KEY (table_name, chain, date));
COMMENT ON TABLE ops.archived_rows IS 'Rows of a day that are no longer hot. Written in the transaction that drops
 them, and never by what rewrites objects: if the objects of ops.archive_manifest hold fewer, rows are lost';
INSERT INTO ops.archived_rows
SELECT table_name, chain, date, sum(rows) FROM ops.archive_manifest WHERE replaced_at IS NULL GROUP BY 1, 2, 3;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(ARCHIVED)


def downgrade() -> None:
    op.get_bind().exec_driver_sql("DROP TABLE ops.archived_rows")
