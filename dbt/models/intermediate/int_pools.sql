select chain, pool, protocol, fee, token0, token1, base, quote, registered as quote_registered
from {{ source('ops', 'pool_quotes') }}
