// 25 tests, each with an HTTP server and a child process that serves, on ports of PICKER.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:http';

import getPort, { portNumbers } from 'get-port';
import { lease } from 'portlock';
import { getPort as compatible } from 'portlock/get-port';
import { expect, test } from 'vitest';

const [first, last] = process.env.SUITE_PORTS.split('-').map(Number);
const range = { port: portNumbers(first, last) };

/** Each returns a port and a function that releases it. */
const pickers = {
  portlock: async () => {
    const port = await lease({ ports: process.env.SUITE_PORTS });
    return [port.port, () => port.release()];
  },
  'portlock/get-port': async () => [await compatible(range), () => undefined],
  'get-port': async () => [await getPort(range), () => undefined],
};

const pick = pickers[process.env.PICKER ?? 'portlock'];

const CHILD = `
  const server = require('http').createServer((_, response) => response.end(String(process.pid)));
  server.on('error', (error) => { console.log(error.code); process.exit(1); });
  server.listen(Number(process.argv[1]), () => console.log('ready'));`;

for (let i = 0; i < 25; i++) {
  test(`serves ${i}`, async () => {
    const begin = performance.now();
    const [own, releaseOwn] = await pick();
    const [childs, releaseChilds] = await pick();
    const picked = performance.now();
    const server = createServer((_, response) => response.end(`${process.pid}`));
    const child = spawn(process.execPath, ['-e', CHILD, `${childs}`], { stdio: 'pipe' });
    try {
      server.listen(own);
      await once(server, 'listening');
      const [line] = await once(child.stdout, 'data');
      expect(`${line}`.trim()).toBe('ready');
      const text = async (port) => (await fetch(`http://127.0.0.1:${port}/`)).text();
      expect(await text(own)).toBe(`${process.pid}`);
      expect(await text(childs)).toBe(`${child.pid}`);
    } finally {
      child.kill();
      await (child.exitCode === null && child.signalCode === null && once(child, 'exit'));
      server.closeAllConnections();
      if (server.listening) await new Promise((resolve) => server.close(resolve));
      releaseOwn();
      releaseChilds();
      if (process.env.TIMES) console.log(`T ${picked - begin} ${performance.now() - picked}`);
    }
  });
}
