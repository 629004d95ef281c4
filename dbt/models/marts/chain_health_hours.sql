with hours as (
    select
        chain, date_trunc('hour', ts, 'UTC') as hour, count(*) as blocks, min(block_number) as first_block,
        max(block_number) as last_block
    from {{ source('chain', 'blocks') }} group by 1, 2
),
orphaned as (
    select t.chain, date_trunc('hour', t.ts, 'UTC') as hour, count(*) as blocks
    from {{ source('ops', 'block_tree') }} t
    join (select chain, min(first_block) as number from hours group by 1) f on f.chain = t.chain
    where t.status = 'orphaned' and t.block_number >= f.number group by 1, 2
)
select
    h.chain,
    h.hour,
    h.first_block,
    h.last_block,
    h.blocks,
    h.last_block - coalesce(lag(h.last_block) over (partition by h.chain order by h.hour), h.first_block - 1) - h.blocks
        as missing_blocks,
    coalesce(o.blocks, 0) as orphaned_blocks
from hours h
left join orphaned o on o.chain = h.chain and o.hour = h.hour
