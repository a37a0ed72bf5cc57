// The worker for get-port; src/worker.rs describes the protocol.

import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

const [modulePath, tool, first, last] = process.argv.slice(2);
const { default: getPort, clearLockedPorts } = await import(pathToFileURL(modulePath));
const { version } = JSON.parse(readFileSync(join(dirname(modulePath), 'package.json')));

// Not portNumbers(): it begins at the first port each time, and checks every reserved
// port again, so that a thousand ports take minutes.
function* randomOrder(first, last) {
  const count = last - first + 1;
  for (let n = 0; n < count; n++) yield first + Math.floor(Math.random() * count);
}

const options = tool === 'get-port-range'
  ? () => ({ port: randomOrder(Number(first), Number(last)), reserve: true })
  : () => ({ reserve: true });

async function pick() {
  try {
    return await getPort(options());
  } catch (error) {
    if (error.message === 'No available ports found') return 0;
    throw error;
  }
}

const commands = {
  async pick() {
    return [await pick()];
  },
  async keep(count) {
    const ports = [];
    const start = process.hrtime.bigint();
    for (let n = 0; n < count; n++) ports.push(await pick());
    return [process.hrtime.bigint() - start, ...ports];
  },
  async cycle(milliseconds) {
    const start = process.hrtime.bigint();
    const end = start + BigInt(milliseconds) * 1_000_000n;
    let times = 0;
    while (process.hrtime.bigint() < end) {
      if (await pick()) times++;
      clearLockedPorts();
    }
    return [times, process.hrtime.bigint() - start];
  },
};

process.stdout.write(`ready ${version} on Node.js ${process.versions.node}\n`);
for await (const line of createInterface({ input: process.stdin })) {
  const [command, number] = line.split(' ');
  process.stdout.write(`${(await commands[command](Number(number))).join(' ')}\n`);
}
