// The worker for the tools for Node.js; src/worker.rs describes the protocol.

import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

const [modulePath, tool, first, last] = process.argv.slice(2);
const module = await import(pathToFileURL(modulePath));
const packageFile = ['.', '..']
  .map((folder) => join(dirname(modulePath), folder, 'package.json'))
  .find((file) => existsSync(file));
const { version } = JSON.parse(readFileSync(packageFile));

// Not portNumbers(): it begins at the first port each time, and checks every reserved
// port again, so that a thousand ports take minutes.
function* randomOrder(first, last) {
  const count = last - first + 1;
  for (let n = 0; n < count; n++) yield first + Math.floor(Math.random() * count);
}

function getPort() {
  const options = tool === 'get-port-range'
    ? () => ({ port: randomOrder(Number(first), Number(last)), reserve: true })
    : () => ({ reserve: true });
  return {
    async pick() {
      try {
        return await module.default(options());
      } catch (error) {
        if (error.message === 'No available ports found') return 0;
        throw error;
      }
    },
    release: () => module.clearLockedPorts(),
  };
}

function portlock() {
  const kept = new Map();
  return {
    pick() {
      try {
        const port = module.leaseSync({ ports: `${first}-${last}`, timeout: 0 });
        kept.set(port.port, port);
        return port.port;
      } catch (error) {
        if (error.code === 'ERR_PORTLOCK_EXHAUSTED') return 0;
        throw error;
      }
    },
    release(number) {
      kept.get(number).release();
      kept.delete(number);
    },
  };
}

const { pick, release } = tool === 'portlock' ? portlock() : getPort();

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
      const port = await pick();
      if (!port) continue;
      release(port);
      times++;
    }
    return [times, process.hrtime.bigint() - start];
  },
};

process.stdout.write(`ready ${version} on Node.js ${process.versions.node}\n`);
for await (const line of createInterface({ input: process.stdin })) {
  const [command, number] = line.split(' ');
  process.stdout.write(`${(await commands[command](Number(number))).join(' ')}\n`);
}
