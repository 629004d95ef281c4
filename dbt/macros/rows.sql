{#- How models get at rows: text of addresses, and the rows of the hours that a run has taken. -#}

{% macro hex(column) %}'0x' || encode({{ column }}, 'hex'){% endmacro %}

{#- A number's `digits`-th power of ten apart. -#}
{% macro scaled(amount, digits) %}{{ amount }}::float8 * 10::float8 ^ -{{ digits }}{% endmacro %}

{#- Rows of `relation` in the batch's hours (or whole days), hot ones and those recalled from the archive. The times are
    constants, so that the planner leaves out the chunks of other days. -#}
{% macro changed_rows(name, columns, grain='hour', where='true', schema='chain') %}(
    select {{ columns | join(', ') }} from {{ source(schema, name) }} where ({{ in_batch(grain) }}) and ({{ where }})
    {% if schema == 'chain' -%}
    union all
    select {{ columns | join(', ') }} from {{ source('recalled', name) }} where ({{ in_batch(grain) }}) and ({{ where }})
    {%- endif %}
){% endmacro %}

{#- Whether `chain` and `ts` are in an hour (or on a day) of the batch. -#}
{% macro in_batch(grain='hour', ts='ts') %}
{%- if execute -%}
    {%- set spans = run_query("
        select chain, to_char(min(slot) at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') || '+00',
         to_char((max(slot) + interval '1 " ~ grain ~ "') at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') || '+00'
        from (select chain, slot, slot - interval '1 " ~ grain ~ "' * row_number() over (partition by chain order by slot)
         as island from (select distinct chain, date_trunc('" ~ grain ~ "', hour, 'UTC') as slot
          from ops.mart_batch) slots) islands
        group by chain, island order by 1, 2").rows -%}
    {%- for chain, first, last in spans -%}
        chain = '{{ chain }}' and {{ ts }} >= '{{ first }}' and {{ ts }} < '{{ last }}'{{ ' or ' if not loop.last }}
    {%- else -%} false {%- endfor -%}
{%- else -%} true {%- endif -%}
{% endmacro %}

{#- Join: symbol and decimals of a token, as the registry has them, else as the contract says, else 18 decimals; what the
    search documents say, too. -#}
{% macro described(name, chain, token) %}left join lateral (
    select
        coalesce(known.symbol, told.symbol) as symbol, known.rank as quote_rank, coalesce(known.stable, false) as stable,
        coalesce(known.decimals, case when told.decimals between 0 and 77 then told.decimals end, 18) as decimals
    from (select 1 as one) o
    left join {{ source('ops', 'quote_tokens') }} known on known.chain = {{ chain }} and known.token = {{ token }}
    left join (
        select c.symbol, c.decimals from {{ source('chain', 'tokens') }} c
        where c.address = decode(substr({{ token }}, 3), 'hex') and c.chain = {{ chain }} order by c.ts desc limit 1
    ) told on true
) {{ name }} on true{% endmacro %}
