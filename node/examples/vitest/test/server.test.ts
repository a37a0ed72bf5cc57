import { spawn } from 'node:child_process';
import { createServer } from 'node:http';

import { listen } from 'portlock';
import { portFixture } from 'portlock/vitest';
import { test as base, expect, inject } from 'vitest';

const test = base.extend({ port: portFixture({ label: 'example' }) });

for (let i = 1; i <= 5; i++) {
  test.concurrent(`a child process serves, ${i}`, async ({ port }) => {
    const env = { ...process.env, PORT: `${port}` };
    const server = spawn(process.execPath, ['test/server.js'], { env, stdio: 'inherit' });
    try {
      await port.waitForServer({ pid: server.pid });
      expect(await (await fetch(port.url())).text()).toBe('hello');
    } finally {
      server.kill();
    }
  });
}

test('this process serves', async () => {
  const server = createServer((_, response) => response.end('hello'));
  const listening = await listen({ server });
  expect(await (await fetch(listening.port.url())).text()).toBe('hello');
  await listening.close();
});

test('a port is leased for the whole run', () => {
  expect(inject('ports').web).toBeGreaterThan(0);
});
