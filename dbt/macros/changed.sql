{#- Incremental strategy `changed`: rows of the keys that the batch changes go, the ones computed for them come, in one
    transaction. Not dbt's delete+insert: that deletes only keys that have rows again. -#}

{% macro get_incremental_changed_sql(args) %}
    {%- set columns = get_quoted_csv(args['dest_columns'] | map(attribute='name')) -%}
    delete from {{ args['target_relation'] }} as t where {{ changed_keys(config.get('changed_keys'), args['target_relation']) }};
    insert into {{ args['target_relation'] }} ({{ columns }}) select {{ columns }} from {{ args['temp_relation'] }}
{% endmacro %}

{#- Whether row `t` has a key that the batch changes. `this`: the table, or none while it is not there. -#}
{% macro changed_keys(kind, this) %}
{%- if kind == 'hours' -%}
    (t.chain, t.hour) in (select chain, hour from ops.mart_batch)
{%- elif kind == 'token_periods' -%}
    (t.chain, t.token, t.period, t.period_start) in (
        select chain, token, period, period_start from ({{ changed_token_periods(this) }}) k)
{%- elif kind == 'pool_hours' -%}
    exists (select from ({{ changed_pools(this) }}) k where k.chain = t.chain and k.pool = t.pool and t.hour >= k.since)
{%- elif kind == 'wallet_days' -%}
    (t.chain, t.wallet, t.day) in (select chain, wallet, day from ({{ changed_wallet_days() }}) k)
{%- endif -%}
{% endmacro %}

{#- Tokens of pools with an event in the batch's hours, with the first of these hours; those that have no event there any
    more are known by the table's own hours. Tokens whose pools changed: since ever. -#}
{% macro changed_tokens(this) %}
    select chain, token, min(hour) as since from (
        select h.chain, h.token, h.hour from {{ ref('int_token_hours') }} h join ops.mart_batch b using (chain, hour)
        {% if this -%}
        union all
        select p.chain, p.token, p.period_start from {{ this }} p
        join ops.mart_batch b on b.chain = p.chain and b.hour = p.period_start where p.period = '1h'
        {% endif -%}
        union all
        select chain, token, '-infinity' from ops.mart_batch_tokens
    ) c group by chain, token
{% endmacro %}

{#- Their periods that a changed hour is in, and later ones: those begin with its price and may end with its reserves. -#}
{% macro changed_token_periods(this) %}
    select distinct h.chain, h.token, p.period, p.period_start
    from ({{ changed_tokens(this) }}) c
    join (
        select chain, token, hour from {{ ref('int_token_hours') }}
        {% if this -%} union all select chain, token, period_start from {{ this }} where period = '1h' {%- endif %}
    ) h on h.chain = c.chain and h.token = c.token
    cross join lateral (values
        ('1h', h.hour, interval '1 hour'), ('24h', date_trunc('day', h.hour, 'UTC'), interval '1 day'),
        ('7d', date_trunc('week', h.hour, 'UTC'), interval '7 days')) p(period, period_start, length)
    where p.period_start + p.length > c.since
{% endmacro %}

{#- Pools with an event or a move of shares in the batch's hours, now or when the table was written, and the first one. -#}
{% macro changed_pools(this) %}
    select chain, pool, min(hour) as since from (
        select h.chain, h.pool, h.hour from {{ ref('int_pool_hours') }} h join ops.mart_batch b using (chain, hour)
        union all
        select f.chain, f.pool, f.hour from {{ ref('int_share_flows') }} f join ops.mart_batch b using (chain, hour)
        {% if this -%}
        union all
        select t.chain, t.pool, t.hour from {{ this }} t join ops.mart_batch b using (chain, hour)
        {% endif -%}
        union all
        select q.chain, q.pool, '-infinity' from ops.pool_quotes q
        join ops.mart_batch_tokens b on b.chain = q.chain and b.token = q.token0
    ) c group by chain, pool
{% endmacro %}

{#- Wallets with a row in the batch's hours, wherever it is now: what left the chain is in schema `side`. -#}
{% macro changed_wallet_days() %}
    select chain, wallet, date_trunc('day', ts, 'UTC') as day from (
        {%- for schema in ('chain', 'side') %}
        select chain, ts, {{ hex('unnest(array[from_address, to_address])') }} as wallet
        from {{ changed_rows('token_transfers', ['chain', 'ts', 'from_address', 'to_address'], schema=schema) }} x
        union all
        select chain, ts, {{ hex('unnest(array[from_address, to_address])') }}
        from {{ changed_rows('transactions', ['chain', 'ts', 'from_address', 'to_address'], schema=schema) }} t
        {{ 'union all' if not loop.last }}
        {%- endfor %}
    ) w where wallet is not null group by 1, 2, 3
{% endmacro %}
