import { createServer } from 'node:http';

import { test as base, expect } from '@playwright/test';
import { listen, type FreePort } from 'portlock';
import { portFixture } from 'portlock/playwright';

const test = base.extend<{ port: FreePort }>({ port: portFixture() });

for (let i = 1; i <= 6; i++) {
  // `request` is bound to the base URL of the configuration, as this worker has loaded it.
  test(`the web server answers, ${i}`, async ({ request, baseURL }) => {
    const response = await request.get('/');
    expect(response.ok()).toBe(true);
    console.log(`${process.pid} ${baseURL} ${await response.text()}`);
  });
}

test('a test has its own port', async ({ port, baseURL }) => {
  expect(baseURL).not.toContain(`:${port}`);
  const server = createServer((_, response) => response.end('hello')).listen(port.port);
  await port.waitForServer();
  expect(await (await fetch(port.url())).text()).toBe('hello');
  server.close();
  server.closeAllConnections();
});

test('this process serves', async () => {
  const server = createServer((_, response) => response.end('hello'));
  const listening = await listen({ server });
  expect(await (await fetch(listening.port.url())).text()).toBe('hello');
  server.closeAllConnections();
  await listening.close();
});
