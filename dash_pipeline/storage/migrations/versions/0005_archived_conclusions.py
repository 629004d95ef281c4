"""Anomalies, predictions and dead letters go to the archive: what stays of them, and how their old rows are found."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

UP = """
ALTER TABLE ops.dead_letters ADD chain text NOT NULL GENERATED ALWAYS AS (split_part(topic, '.', 1)) STORED;
CREATE INDEX dead_letters_seen ON ops.dead_letters (seen_at);
CREATE INDEX predictions_as_of ON intel.predictions (as_of);

ALTER TABLE intel.alerts ADD tx_hash bytea, ADD predictions jsonb;
UPDATE intel.alerts a SET tx_hash = n.tx_hash FROM intel.anomalies n WHERE n.id = a.id;
COMMENT ON COLUMN intel.alerts.predictions IS 'What is shown of the predictions, once they are archived';

CREATE TABLE intel.archived_anomalies (id bytea PRIMARY KEY);
COMMENT ON TABLE intel.archived_anomalies IS 'Anomalies that were archived, and not taken back. They are final:
 found again after a replay, they are not stored again';

ALTER TABLE ops.archive_manifest ALTER block_min DROP NOT NULL, ALTER block_max DROP NOT NULL;
"""

DOWN = """
ALTER TABLE ops.dead_letters DROP chain;
DROP INDEX ops.dead_letters_seen;
DROP INDEX intel.predictions_as_of;
ALTER TABLE intel.alerts DROP tx_hash, DROP predictions;
DROP TABLE intel.archived_anomalies;
DELETE FROM ops.archive_manifest WHERE block_min IS NULL;
ALTER TABLE ops.archive_manifest ALTER block_min SET NOT NULL, ALTER block_max SET NOT NULL;
"""


def upgrade() -> None:
    op.get_bind().exec_driver_sql(UP)


def downgrade() -> None:
    op.get_bind().exec_driver_sql(DOWN)
