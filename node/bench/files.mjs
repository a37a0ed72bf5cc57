// Measures how long it takes to read 1,000 files, without and with a hundred pending leases.

import { setMaxListeners } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { lease } from 'portlock';

const folder = await mkdtemp(join(tmpdir(), 'portlock-bench-'));
const files = Array.from({ length: 1000 }, (_, i) => join(folder, `${i}`));
for (const file of files) await writeFile(file, file.repeat(100));

async function read() {
  const start = performance.now();
  await Promise.all(files.map((file) => readFile(file)));
  return performance.now() - start;
}

async function median(n) {
  const times = [];
  for (let i = 0; i < n; i++) times.push(await read());
  return times.sort((a, b) => a - b)[Math.floor(n / 2)].toFixed(1);
}

await median(5);
const held = await lease({ ports: '20000-20999' });
for (let round = 1; round <= 3; round++) {
  const without = await median(15);
  const controller = new AbortController();
  setMaxListeners(0, controller.signal);
  const { signal } = controller;
  const waits = Array.from({ length: 100 }, () => lease({ ports: held.port, signal }));
  await sleep(500);
  const cpu = process.cpuUsage();
  await sleep(1000);
  const { user, system } = process.cpuUsage(cpu);
  const withWaits = await median(15);
  controller.abort();
  await Promise.allSettled(waits);
  const idle = ((user + system) / 1e4).toFixed(1);
  console.log(
    `without ${without} ms, with 100 waits ${withWaits} ms; the waits take ${idle} % of a core`,
  );
}
await rm(folder, { recursive: true });
