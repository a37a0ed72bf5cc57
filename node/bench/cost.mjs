// Measures the cost of a lease and its release, one at a time in one process, beside other pickers.

import { lease, leaseSync } from 'portlock';

import { pickers } from './pickers.mjs';

async function measure(name, n, once) {
  for (let i = 0; i < n / 10; i++) await once();
  const times = [];
  for (let i = 0; i < n; i++) {
    const start = performance.now();
    await once();
    times.push((performance.now() - start) * 1000);
  }
  times.sort((a, b) => a - b);
  const at = (q) => times[Math.floor(q * (n - 1))].toFixed(0);
  console.log(`${name}: median ${at(0.5)} µs, 90 % within ${at(0.9)} µs`);
}

const ports = '20000-20999';
await measure('portlock lease, release', 2000, async () => (await lease({ ports })).release());
await measure('portlock leaseSync, release', 2000, () => leaseSync({ ports }).release());
for (const [name, pick] of Object.entries(pickers)) {
  if (name !== 'portlock') await measure(name, 300, pick);
}
