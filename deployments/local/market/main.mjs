// Makes a market on a running anvil (--no-mining --order fifo), and prints its labels as JSON.
//
//   node main.mjs --rpc URL [--seed 7] [--pools 22] [--blocks 1000] [--start SECONDS] [--spacing 12] [--interval 0]
//                 [--mix default]
//
// --mix names which kinds of pools there are: default is the recorded market's, the others are for judging detectors.
// --start is the timestamp of block 0, --spacing the seconds from block to block on the chain's own clock,
// --interval the seconds between them on ours (0: as fast as it goes).
import { parseArgs } from 'node:util';
import { setTimeout as sleep } from 'node:timers/promises';
import { Chain } from './chain.mjs';
import { chance } from './random.mjs';
import { Market, labels } from './market.mjs';
import { MIXES } from './scenarios.mjs';
import { Uniswap } from './uniswap.mjs';

const NUMBERS = { seed: 7, pools: 22, blocks: 1000, start: 1717200000, spacing: 12, interval: 0 };

function settings() {
  const options = {
    rpc: { type: 'string', default: 'http://127.0.0.1:8545' },
    mix: { type: 'string', default: 'default' },
  };
  for (const [name, value] of Object.entries(NUMBERS)) options[name] = { type: 'string', default: String(value) };
  const { values } = parseArgs({ options });
  for (const name of Object.keys(NUMBERS)) {
    values[name] = Number(values[name]);
    if (!Number.isFinite(values[name]) || values[name] < 0) throw new Error(`--${name}: not a number`);
  }
  if (!Object.hasOwn(MIXES, values.mix)) throw new Error(`--mix: one of ${Object.keys(MIXES).join(', ')}`);
  return values;
}

async function main() {
  const { rpc, mix, seed, pools, blocks, start, spacing, interval } = settings();
  const chain = await Chain.open(rpc, { start, spacing });
  const uniswap = await Uniswap.deploy(chain, chain.accounts[0]);
  const market = new Market(uniswap, chain.accounts, chance(seed), { pools, blocks, mix });
  for (let block = 0; block < blocks; block += 1) {
    await market.step(block);
    if (interval) await sleep(interval * 1000);
    if (block % 100 === 99) console.error(`${block + 1} of ${blocks} blocks, ${chain.transactions} transactions`);
  }
  console.log(JSON.stringify({ seed, ...(await labels(market)) }, null, 1));
}

main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
