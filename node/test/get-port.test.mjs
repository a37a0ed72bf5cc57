import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, mock, test } from 'node:test';

import getPort, * as module from 'portlock/get-port';
import { clearLockedPorts, portNumbers } from 'portlock/get-port';

import { isFree, ownPorts } from './support.mjs';

const ports = await ownPorts(16);
const own = (n) => ports.splice(0, n);

// get-port's interface has no option for the lock directory.
const lockDir = await mkdtemp(join(tmpdir(), 'portlock-node-'));
after(() => rm(lockDir, { recursive: true }));
process.env.PORTLOCK_DIR = lockDir;

test('the preferred ports are tried in their order, then any', async () => {
  const [first, second, third] = own(3);
  const port = [third, first, second];
  assert.equal(await getPort({ port }), third);
  assert.equal(await getPort({ port }), first);
  assert.equal(await getPort({ port: new Set(port) }), second);
  const other = await getPort({ port });
  assert.ok(!port.includes(other));
  clearLockedPorts();
  assert.equal(await getPort({ port: third }), third);
  clearLockedPorts();
});

test('a preferred port that a program has bound is skipped', async () => {
  const [bound, free] = own(2);
  const server = net.createServer().listen(bound, '127.0.0.1');
  await once(server, 'listening');
  assert.equal(await getPort({ port: [bound, free] }), free);
  server.close();
  clearLockedPorts();
});

test('a port is leased for 30 seconds, or with reserve until the process ends', async () => {
  const [short, long] = own(2);
  mock.timers.enable({ apis: ['setTimeout'] });
  await getPort({ port: short });
  await getPort({ port: long, reserve: true });
  mock.timers.tick(29_999);
  assert.deepEqual([isFree({ lockDir }, short), isFree({ lockDir }, long)], [false, false]);
  mock.timers.tick(1);
  assert.deepEqual([isFree({ lockDir }, short), isFree({ lockDir }, long)], [true, false]);
  mock.timers.reset();
  clearLockedPorts();
  assert.equal(isFree({ lockDir }, long), true);
});

test('excluded ports are not returned', async () => {
  const [first, second] = own(2);
  assert.equal(await getPort({ port: [first, second], exclude: [first] }), second);
  const one = await getPort({ exclude: [first, -1, 0, 99_999] });
  assert.notEqual(one, first);
  clearLockedPorts();
});

test('a host is an address or a name', async () => {
  const [port] = own(1);
  const server = net.createServer().listen(port, '127.0.0.2');
  await once(server, 'listening');
  assert.equal(await getPort({ port, host: '127.0.0.1' }), port);
  clearLockedPorts();
  assert.equal(await getPort({ port, host: 'localhost' }), port);
  clearLockedPorts();
  assert.notEqual(await getPort({ port, host: '127.0.0.2' }), port);
  assert.notEqual(await getPort({ port, host: '' }), port);
  await assert.rejects(getPort({ host: 'no.such.host.invalid' }), { syscall: /getaddrinfo/ });
  server.close();
  clearLockedPorts();
});

test('invalid arguments are errors', async () => {
  for (const exclude of [42, ['foo'], [Number.NaN], [1.5]]) {
    await assert.rejects(getPort({ exclude }), TypeError);
  }
  for (const port of [-1, 70_000, 1.5, Number.NaN]) {
    await assert.rejects(getPort({ port }), RangeError);
  }
  for (const port of ['4000', ['4000'], Symbol('4000'), true, {}]) {
    await assert.rejects(getPort({ port }), TypeError);
  }
  await assert.rejects(getPort({ reserve: 1 }), TypeError);
  await assert.rejects(getPort({ host: 1 }), TypeError);
  await assert.rejects(getPort({ host: 'fe80::1%lo' }), { code: 'ERR_INVALID_ARG_VALUE' });
  await assert.rejects(getPort(1), TypeError);
  for (const [from, to] of [
    [1023, 1024],
    [1024, 1023],
    [65_536, 65_536],
    [1024, 65_536],
  ]) {
    assert.throws(() => portNumbers(from, to), RangeError);
  }
  for (const [from, to] of [
    ['1', 2000],
    [2000, undefined],
    [1024.5, 2000],
  ]) {
    assert.throws(() => portNumbers(from, to), TypeError);
  }
  assert.deepEqual([...portNumbers(1024, 1026)], [1024, 1025, 1026]);
});

test('the module for require has the same functions', () => {
  const required = createRequire(import.meta.url)('portlock/get-port');
  assert.equal(required.getPort, getPort);
  assert.equal(required.default, getPort);
  assert.equal(required.portNumbers, portNumbers);
  assert.equal(required.clearLockedPorts, clearLockedPorts);
  assert.equal(module.getPort, getPort);
});
