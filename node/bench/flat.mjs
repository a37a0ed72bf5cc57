// Checks whether descriptors, threads and memory stay constant over 10,000 leases. Linux only.

import { readdirSync } from 'node:fs';

import { lease, leaseSync } from 'portlock';

const ports = '20000-20999';

function state() {
  globalThis.gc?.();
  const count = (folder) => readdirSync(`/proc/self/${folder}`).length;
  const mib = (process.memoryUsage.rss() / 2 ** 20).toFixed(1);
  return `${count('fd')} descriptors, ${count('task')} threads, ${mib} MiB`;
}

for (let i = 0; i < 1000; i++) (await lease({ ports })).release();
console.log(`after 1,000: ${state()}`);
for (let round = 1; round <= 5; round++) {
  for (let i = 0; i < 1000; i++) {
    (await lease({ ports })).release();
    leaseSync({ ports }).release();
  }
  console.log(`after ${1000 + round * 2000}: ${state()}`);
}
