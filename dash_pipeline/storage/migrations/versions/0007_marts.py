"""What the marts are made of: which hours changed, which quote token a pool has, and archived rows that came back."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

UP = """
CREATE SEQUENCE ops.change_version;
CREATE TABLE ops.changed_hours (chain text, hour timestamptz, version int8 NOT NULL, PRIMARY KEY (chain, hour));
COMMENT ON TABLE ops.changed_hours IS 'Hours with rows that the marts do not show yet. Written when the search
 follower strikes a micro-batch off its outbox; deleted when a run of the marts that took this version has succeeded';
CREATE TABLE ops.changed_tokens (chain text, token text, version int8 NOT NULL, PRIMARY KEY (chain, token));
COMMENT ON TABLE ops.changed_tokens IS 'Tokens of which a pool was found, left or got another quote token since, or
 that describe themselves otherwise. Addresses are text here, as in the marts';

CREATE TABLE ops.mart_batch (chain text, hour timestamptz, version int8 NOT NULL, PRIMARY KEY (chain, hour));
CREATE TABLE ops.mart_batch_tokens (chain text, token text, version int8 NOT NULL, PRIMARY KEY (chain, token));
COMMENT ON TABLE ops.mart_batch IS 'The changed hours that the newest run of the marts took';
COMMENT ON TABLE ops.mart_batch_tokens IS 'The changed tokens that the newest run of the marts took';
CREATE TABLE ops.mart_project (version text NOT NULL);
COMMENT ON TABLE ops.mart_project IS 'The state of the dbt project that the marts were last built with';

CREATE TABLE ops.quote_tokens (
    chain text, rank int4 NOT NULL, token text, symbol text NOT NULL, decimals int4 NOT NULL, stable bool NOT NULL,
    PRIMARY KEY (chain, token));
COMMENT ON TABLE ops.quote_tokens IS 'The registry''s quote tokens, those first that prices are rather expressed in';
CREATE TABLE ops.pool_quotes (
    chain text, pool text, protocol text NOT NULL, fee int4, token0 text NOT NULL, token1 text NOT NULL,
    base text NOT NULL, quote text NOT NULL, registered bool NOT NULL, PRIMARY KEY (pool, chain));
CREATE INDEX pool_quotes_token0 ON ops.pool_quotes (token0, chain);
CREATE INDEX pool_quotes_token1 ON ops.pool_quotes (token1, chain);
COMMENT ON TABLE ops.pool_quotes IS 'Which of a pool''s tokens is priced in which, by the rule of the search rollups';

CREATE SCHEMA recalled;
COMMENT ON SCHEMA recalled IS 'Archived rows of days that a run of the marts computes anew, because a late row came';
"""

TABLES = ("transactions", "token_transfers", "pool_events")


def upgrade() -> None:
    run = op.get_bind().exec_driver_sql
    run(UP)
    for table in TABLES:
        run(f"CREATE TABLE recalled.{table} (LIKE chain.{table})")


def downgrade() -> None:
    run = op.get_bind().exec_driver_sql
    run("DROP SCHEMA recalled CASCADE")
    run(
        "DROP TABLE ops.changed_hours, ops.changed_tokens, ops.mart_batch, ops.mart_batch_tokens, ops.mart_project,"
        " ops.quote_tokens, ops.pool_quotes"
    )
    run("DROP SEQUENCE ops.change_version")
