"""Keys of the read API: who may ask how much."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

KEYS = """
CREATE TABLE ops.api_keys (
    hash bytea PRIMARY KEY, name text NOT NULL, tier text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(), revoked_at timestamptz);
CREATE UNIQUE INDEX api_keys_name ON ops.api_keys (name) WHERE revoked_at IS NULL;
COMMENT ON TABLE ops.api_keys IS 'SHA-256 of each key of the read API, and the tier whose rates it has. The keys
 themselves are nowhere';
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(KEYS)


def downgrade() -> None:
    op.get_bind().exec_driver_sql("DROP TABLE ops.api_keys")
