const { spawn } = require('node:child_process');
const { createServer } = require('node:http');

const { listen } = require('portlock');
const { leaseForTest } = require('portlock/jest');

for (let i = 1; i <= 5; i++) {
  test(`a child process serves, ${i}`, async () => {
    const port = await leaseForTest({ label: 'example' });
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

let last;

test('a port is leased until the end of its test', async () => {
  last = await leaseForTest();
  expect(last.released).toBe(false);
});

test('a port is released at the end of its test', () => {
  expect(last.released).toBe(true);
});

test('this process serves', async () => {
  const server = createServer((_, response) => response.end('hello'));
  const listening = await listen({ server });
  expect(await (await fetch(listening.port.url())).text()).toBe('hello');
  await listening.close();
});

test('a port is leased for the whole run', () => {
  expect(Number(process.env.WEB_PORT)).toBeGreaterThan(0);
});
