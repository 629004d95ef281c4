// A market of pools: who opens one when, who trades, and what became of it.
import { ethers } from 'ethers';
import { MIXES, PLANS, SCENARIOS } from './scenarios.mjs';
import { UNIT } from './uniswap.mjs';

const DEVELOPERS = 20;
/** Blocks from a pool's creation to its first trade. */
const QUIET_BLOCKS = 2;
/** Traders notice a rug pull after so many blocks. */
const BLOCKS_OF_PANIC = 5;
const SELLS = 0.45;
const TOO_LATE = 0.01;
const TENTH_OF_A_GWEI = 10n ** 8n;

export class Market {
  /** `accounts[0]` owns the exchange, the next ones open pools, the rest trade. */
  constructor(uniswap, accounts, chance, { pools, blocks, mix = 'default' }) {
    this.uniswap = uniswap;
    this.chain = uniswap.chain;
    this.chance = chance;
    this.developers = accounts.slice(1, 1 + DEVELOPERS);
    this.traders = accounts.slice(1 + DEVELOPERS);
    this.mix = MIXES[mix];
    this.events = [];
    this.pools = Array.from({ length: pools }, (_, index) => this.#plan(index, blocks));
  }

  /** Everything that happens at one block, up to and including mining it. */
  async step(block) {
    for (const pool of this.pools) await this.#live(pool, block);
    await this.chain.mine();
  }

  /** Other developers than the pool's own. */
  partnersOf(pool, count) {
    const own = this.developers.indexOf(pool.developer);
    return Array.from({ length: count }, (_, index) => this.developers[(own + 1 + index) % this.developers.length]);
  }

  /** Takes out so many thousandths of an account's shares, and keeps it as an event to be labelled. */
  async withdraw(pool, account, thousandths, { rug = false, step } = {}) {
    const held = await this.uniswap.balance(pool.pair, account);
    const shares = (held * BigInt(thousandths)) / 1000n;
    const tx = await this.uniswap.removeLiquidity(account, pool.token, pool.pair, shares);
    this.#keep(pool, tx, { rug, step, lpFraction: thousandths / 1000 });
  }

  /** Someone else adds liquidity worth so much ether, with tokens that the developer gives him. */
  async join(pool, account, { eth }) {
    const { uniswap } = this;
    const [tokens, ether] = await uniswap.reserves(pool.pair, pool.token);
    // A trade before it in the block may have made tokens dearer: more than enough, and what is left stays with him.
    const wanted = (((eth * tokens) / ether) * 12n) / 10n;
    const missing = wanted - (await uniswap.balance(pool.token, account));
    if (missing > 0n) await uniswap.transfer(pool.developer, pool.token, account, missing);
    await uniswap.addLiquidity(account, pool.token, wanted, eth);
  }

  /** Sells so many thousandths of what an account holds of a pool's token, and keeps it as an event to be labelled. */
  async dump(pool, account, { thousandths = 1000, rug = true, step } = {}) {
    const held = await this.uniswap.balance(pool.token, account);
    const tx = await this.uniswap.sell(account, pool.token, (held * BigInt(thousandths)) / 1000n);
    this.#keep(pool, tx, { rug, step, lpFraction: null });
  }

  #plan(index, blocks) {
    const { chance } = this;
    const kind = this.mix[index % this.mix.length];
    const opensAt = Math.floor(chance.between(0, 0.35) * blocks);
    // A developer who means to dump puts little of the supply into the pool.
    const thousands = kind === 'rug_swap' ? chance.whole(60, 150) : chance.whole(100, 900);
    const plan = {
      kind,
      developer: this.developers[index % this.developers.length],
      opensAt,
      tradesFrom: opensAt + QUIET_BLOCKS,
      eventAt: opensAt + Math.floor(chance.between(0.15, 0.6) * blocks),
      diesAt: Infinity,
      eth: BigInt(chance.whole(5, 120)) * UNIT,
      tokens: BigInt(thousands) * 1000n * UNIT,
      heat: chance.between(0.05, 0.45),
    };
    return { ...plan, ...PLANS[kind]?.(plan, chance) };
  }

  async #live(pool, block) {
    if (block === pool.opensAt) await this.#open(pool);
    if (block < pool.tradesFrom) return;
    pool.pair ??= await this.uniswap.pairOf(pool.token);
    await SCENARIOS[pool.kind](this, pool, block);
    if (block > pool.diesAt + BLOCKS_OF_PANIC || block <= pool.restsUntil) return;
    if (this.chance.happens(pool.heat)) await this.#trade(pool);
    for (let extra = 0; extra < (pool.extraTrades ?? 0); extra += 1) await this.#trade(pool);
  }

  async #open(pool) {
    pool.token = await this.uniswap.deployToken(pool.developer);
    await this.uniswap.addLiquidity(pool.developer, pool.token, pool.tokens, pool.eth, { createsPool: true });
  }

  async #trade(pool) {
    const { chance, uniswap } = this;
    const trader = this.traders[chance.whole(0, this.traders.length - 1)];
    const tip = BigInt(chance.whole(1, 30)) * TENTH_OF_A_GWEI;
    const held = await uniswap.balance(pool.token, trader);
    if (held > 0n && chance.happens(SELLS)) {
      await uniswap.sell(trader, pool.token, (held * BigInt(chance.whole(10, 100))) / 100n, { tip });
    } else {
      await uniswap.buy(trader, pool.token, (pool.eth * BigInt(chance.whole(1, 60))) / 2000n, { tip });
    }
    if (chance.happens(TOO_LATE)) await uniswap.buyTooLate(trader, pool.token, UNIT / 1000n);
  }

  #keep(pool, tx, { rug, step, lpFraction }) {
    const { pair, token, kind } = pool;
    const label = { pool: pair, token, kind, tx, lp_fraction_removed: lpFraction, is_rug: rug };
    this.events.push({ ...label, ...(step && { step }), timestamp: this.chain.nextTimestamp });
  }
}

/** What is known about the market once it is mined: its pools, and its liquidity events with the drop they caused. */
export async function labels(market) {
  const { chain, uniswap } = market;
  const events = [];
  for (const event of market.events) events.push(await measured(market, event));
  return lowered({
    client: await chain.rpc('web3_clientVersion'),
    chainId: chain.id,
    blocks: Number(await chain.rpc('eth_blockNumber')),
    txs: chain.transactions,
    factory: uniswap.factory,
    weth: uniswap.weth,
    router: uniswap.router,
    pools: market.pools.map(({ kind, token, pair, opensAt, eventAt, eth }) => ({
      kind, token, pair, born_step: opensAt, event_step: eventAt, eth,
    })),
    labels: events,
  });
}

async function measured({ chain, uniswap }, event) {
  const receipt = await chain.rpc('eth_getTransactionReceipt', event.tx);
  const block = Number(receipt.blockNumber);
  const before = await uniswap.wethReserve(event.pool, event.token, block - 1);
  const after = await uniswap.wethReserve(event.pool, event.token, block);
  return {
    ...event,
    block,
    status: Number(receipt.status),
    weth_reserve_before_block: before,
    weth_reserve_after_block: after,
    weth_drop: Number(((before - after) * 10000n) / before) / 10000,
  };
}

/** For JSON: addresses in lower case, as the exporter writes them; big numbers as text. */
function lowered(value) {
  const plain = (_, part) => {
    if (typeof part === 'bigint') return String(part);
    return ethers.isAddress(part) ? part.toLowerCase() : part;
  };
  return JSON.parse(JSON.stringify(value, plain));
}
