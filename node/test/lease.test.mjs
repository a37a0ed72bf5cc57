import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { mkdtemp, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { inspect } from 'node:util';

import * as portlock from 'portlock';
import {
  FreePort,
  lease,
  leaseBlock,
  leaseMany,
  leaseOffsets,
  leaseSync,
  PortlockError,
  PortSet,
} from 'portlock';

import { isFree, scene } from './support.mjs';

test('a lease keeps its port until it is released', async (t) => {
  const place = await scene(t);
  const port = await lease({ ports: place.port, lockDir: place.lockDir });
  assert.equal(port.port, place.port);
  assert.equal(isFree(place, place.port), false);
  assert.equal(port.released, false);
  port.release();
  assert.equal(port.released, true);
  assert.equal(isFree(place, place.port), true);
});

test('a second release does not end a later lease', async (t) => {
  const place = await scene(t);
  const first = leaseSync({ ports: place.port, lockDir: place.lockDir });
  first.release();
  const second = leaseSync({ ports: place.port, lockDir: place.lockDir });
  first.release();
  first[Symbol.dispose]();
  assert.equal(isFree(place, place.port), false);
  second.release();
});

test('a lease is its number, as text and for JSON', async (t) => {
  const { port, lockDir } = await scene(t);
  withLease(leaseSync({ ports: port, lockDir }), (lease) => {
    assert.equal(Number(lease), port);
    assert.equal(`${lease}`, `${port}`);
    assert.equal(JSON.stringify({ lease }), `{"lease":${port}}`);
    assert.equal(inspect(lease), `FreePort { ${port} }`);
    assert.equal(lease.url(), `http://127.0.0.1:${port}/`);
    assert.equal(lease.url('ws', '/chat?x=1'), `ws://127.0.0.1:${port}/chat?x=1`);
    assert.ok(lease instanceof FreePort);
  });
  withLease(leaseSync({ ports: port, lockDir, host: '::1' }), (lease) => {
    assert.equal(lease.host, '::1');
    assert.equal(lease.url(), `http://[::1]:${port}/`);
  });
  withLease(leaseSync({ ports: port, lockDir, host: '0.0.0.0' }), (lease) => {
    assert.equal(lease.url(), `http://127.0.0.1:${port}/`);
  });
});

function withLease(lease, body) {
  try {
    body(lease);
  } finally {
    lease[Symbol.dispose]();
  }
}

test('dispose and asyncDispose release', async (t) => {
  const place = await scene(t);
  leaseSync({ ports: place.port, lockDir: place.lockDir })[Symbol.dispose]();
  assert.equal(isFree(place, place.port), true);
  await (await lease({ ports: place.port, lockDir: place.lockDir }))[Symbol.asyncDispose]();
  assert.equal(isFree(place, place.port), true);
});

test('the module for require is the one for import', () => {
  const required = createRequire(import.meta.url)('portlock');
  for (const [name, value] of Object.entries(required)) {
    assert.equal(portlock[name], value, name);
  }
  assert.deepEqual(Object.keys(required).sort(), [
    'FreePort',
    'FreePorts',
    'PortSet',
    'PortlockError',
    'lease',
    'leaseBlock',
    'leaseMany',
    'leaseOffsets',
    'leaseSync',
    'listen',
  ]);
});

test('several ports are leased all or none', async (t) => {
  const { ports, lockDir } = await scene(t, 4);
  const options = { ports, lockDir, timeout: 0 };
  const block = await leaseBlock(3, options);
  assert.deepEqual(
    block.map(Number),
    [0, 1, 2].map((i) => block[0].port + i),
  );
  await assert.rejects(leaseMany(2, options), (error) => {
    assert.equal(error.code, 'ERR_PORTLOCK_EXHAUSTED');
    assert.deepEqual([error.counts.leased, error.counts.notEnough], [3, 1]);
    return true;
  });
  block.release();
  const many = await leaseMany(4, options);
  assert.deepEqual(many.map(Number).sort(), ports);
  assert.ok(!(many.map(Number) instanceof portlock.FreePorts));
  many[Symbol.dispose]();
  const pair = await leaseOffsets([2, 0], options);
  assert.equal(pair[0].port, pair[1].port + 2);
  await pair[Symbol.asyncDispose]();
  assert.deepEqual([...(await leaseMany(0, options))], []);
  assert.equal((await leaseMany(4, options)).length, 4);
});

test('an error has a code, counts and holders', async (t) => {
  const { port, lockDir } = await scene(t);
  const held = leaseSync({ ports: port, lockDir, label: 'orders' });
  await assert.rejects(lease({ ports: port, lockDir, timeout: 0 }), (error) => {
    assert.ok(error instanceof PortlockError && error instanceof Error);
    assert.equal(error.name, 'PortlockError');
    assert.equal(error.code, 'ERR_PORTLOCK_EXHAUSTED');
    assert.equal(error.counts.leased, 1);
    assert.equal(error.counts.bound, 0);
    const holder = `pid ${process.pid} "node" (orders)`;
    assert.deepEqual(error.holders, [{ port, holder }]);
    assert.equal(error.message, `no free port in ${port}: 1 leased (${port} by ${holder})`);
    assert.match(error.stack, /lease\.test\.mjs/);
    return true;
  });
  held.release();
});

test('errors say what is wrong with the system', async () => {
  const lockDir = join(tmpdir(), 'portlock-missing');
  assert.throws(() => leaseSync({ lockDir }), { code: 'ERR_PORTLOCK_LOCK_DIR', path: lockDir });
});

test('invalid arguments are errors of Node.js', async (t) => {
  const { port, lockDir } = await scene(t);
  const type = { name: 'TypeError', code: 'ERR_INVALID_ARG_TYPE' };
  const value = { name: 'TypeError', code: 'ERR_INVALID_ARG_VALUE' };
  const range = { name: 'RangeError', code: 'ERR_OUT_OF_RANGE' };
  const set = { name: 'PortlockError', code: 'ERR_PORTLOCK_INVALID_PORTS' };
  const symbol = Symbol('port');
  const cases = [
    ...[null, 1, 'x', [], symbol, 1n].map((options) => [options, type]),
    ...[Number.NaN, -1, 0, 1.5, 65_536, 1e19, Infinity].map((ports) => [{ ports }, range]),
    ...[null, true, 1n, symbol, {}, () => 1].map((ports) => [{ ports }, type]),
    ...['x', '', '6000-4000', '70000', [], '0'].map((ports) => [{ ports }, set]),
    [{ ports: [Number.NaN] }, range],
    [{ ports: ['4000'] }, type],
    [{ ports: [symbol] }, type],
    ...[Number.NaN, -1, -Infinity].map((timeout) => [{ timeout }, range]),
    ...['1', null, symbol].map((timeout) => [{ timeout }, type]),
    ...['localhost', '', 'fe80::1%lo', '1.2.3'].map((host) => [{ host }, value]),
    ...[1, null, symbol, [1], {}].map((host) => [{ host }, type]),
    ...['label', 'prefer', 'name', 'root', 'lockDir'].map((name) => [{ [name]: symbol }, type]),
    ...['reuseAddress', 'holdSocket', 'orAny'].map((name) => [{ [name]: 'yes' }, type]),
    ...['sctp', 6, symbol, null].map((protocol) => [{ protocol }, value]),
    [{ port: 4000 }, value],
    [{ name: 'No Name' }, { name: 'PortlockError', code: 'ERR_PORTLOCK_INVALID_NAME' }],
  ];
  for (const [options, expected] of cases) {
    const all = typeof options === 'object' && options && !Array.isArray(options);
    const given = all ? { ports: port, lockDir, ...options } : options;
    const what = inspect(options);
    assert.throws(() => leaseSync(given), expected, what);
    await assert.rejects(lease(given), expected, what);
  }
  for (const options of [{ signal: 1 }, { signal: symbol }, { ref: 1 }]) {
    await assert.rejects(lease(options), type, inspect(options));
  }
  for (const [n, expected] of [
    ...[Number.NaN, -1, 1.5, 1e19].map((n) => [n, range]),
    ...['1', symbol, null, undefined, 1n].map((n) => [n, type]),
    [2, set],
  ]) {
    await assert.rejects(leaseMany(n, { ports: port, lockDir }), expected, inspect(n));
    await assert.rejects(leaseBlock(n, { ports: port, lockDir }), expected, inspect(n));
  }
  for (const offsets of [[Number.NaN], [-1], [70_000], [0.5]]) {
    await assert.rejects(leaseOffsets(offsets), range, inspect(offsets));
  }
  for (const offsets of [[symbol], 1, null, undefined, '0']) {
    await assert.rejects(leaseOffsets(offsets), type, inspect(offsets));
  }
  await assert.rejects(leaseOffsets([0, 0]), set);
  const leased = leaseSync({ ports: port, lockDir });
  for (const pid of [Number.NaN, -1, 0, 1.5, 1e19]) {
    assert.throws(() => leased.delegateTo(pid), range, inspect(pid));
  }
  for (const pid of ['1', symbol, null, undefined]) {
    assert.throws(() => leased.delegateTo(pid), type, inspect(pid));
  }
  assert.equal(leased.released, false);
  assert.equal(isFree({ lockDir }, port), false);
  leased.release();
});

test('a port that another program has bound is not leased', async (t) => {
  const { port, lockDir } = await scene(t);
  const server = net.createServer().listen(port, '127.0.0.1');
  await once(server, 'listening');
  const options = { ports: port, lockDir, timeout: 0 };
  await assert.rejects(lease(options), (error) => error.counts.bound === 1);
  leaseSync({ ...options, host: '127.0.0.2' }).release();
  leaseSync({ ...options, protocol: 'udp' }).release();
  server.close();
});

test('a name has the same port every day', async (t) => {
  const { ports, lockDir } = await scene(t, 4);
  const project = await mkdtemp(join(tmpdir(), 'portlock-project-'));
  t.after(() => rm(project, { recursive: true }));
  // The directory of the copies of reservations.
  process.env.XDG_STATE_HOME = join(project, 'state');
  const web = { ports, lockDir, name: 'web', root: project, timeout: 0 };
  const today = leaseSync(web);
  today.release();
  assert.equal(leaseSync({ ports: '1024-65535', ...web }).port, today.port);
  // No other caller gets it.
  const others = await leaseMany(3, { ports, lockDir, timeout: 0 });
  assert.ok(!others.some((port) => port.port === today.port));
  await assert.rejects(lease({ ports: today.port, lockDir, timeout: 0 }), /reserved|leased/);
});

test('prefer chooses the same port, while it is free', async (t) => {
  const { ports, lockDir } = await scene(t, 8);
  const options = { ports, lockDir, prefer: 'worktree/api' };
  const first = leaseSync(options);
  first.release();
  const again = leaseSync(options);
  assert.equal(again.port, first.port);
  assert.notEqual(leaseSync(options).port, first.port);
});

test('a delegated lease lasts as long as its process', async (t) => {
  const place = await scene(t);
  const child = spawn(process.execPath, ['-e', 'process.stdin.resume()'], { stdio: 'pipe' });
  t.after(() => child.kill('SIGKILL'));
  const port = leaseSync({ ports: place.port, lockDir: place.lockDir });
  assert.equal(port.delegateTo(child.pid), place.port);
  assert.equal(port.released, true);
  assert.throws(() => port.delegateTo(child.pid), { code: 'ERR_PORTLOCK_RELEASED' });
  port.release();
  assert.equal(isFree(place, place.port), false);
  child.stdin.end();
  await once(child, 'close');
  assert.equal(isFree(place, place.port), true);
  assert.throws(
    () => leaseSync({ ports: place.port, lockDir: place.lockDir }).delegateTo(child.pid),
    { code: 'ERR_PORTLOCK_PROCESS' },
  );
});

test('waitForServer waits for the server of this process or its child', async (t) => {
  const { port, lockDir } = await scene(t);
  const leased = leaseSync({ ports: port, lockDir });
  const waiting = leased.waitForServer({ timeout: 10_000 });
  const server = createServer().listen(port);
  const { pid, program, isKnown } = await waiting;
  assert.deepEqual({ pid, program, isKnown }, { pid: process.pid, program: 'node', isKnown: true });
  server.close();
  await once(server, 'close');

  const code = `require('net').createServer().listen(${port})`;
  const child = spawn(process.execPath, ['-e', code]);
  t.after(() => child.kill('SIGKILL'));
  assert.equal((await leased.waitForServer()).pid, child.pid);
  assert.equal((await leased.waitForServer({ pid: child.pid })).pid, child.pid);

  const other = spawn(process.execPath, ['-e', 'process.stdin.resume()'], { stdio: 'pipe' });
  t.after(() => other.kill('SIGKILL'));
  await assert.rejects(leased.waitForServer({ pid: other.pid }), (error) => {
    assert.equal(error.code, 'ERR_PORTLOCK_OTHER_SERVER');
    assert.equal(error.server.pid, child.pid);
    assert.match(error.message, /waitUntilListening accepts any server/);
    return true;
  });
  await leased.waitUntilListening();
});

test('a wait for a server ends with its timeout, its signal or its lease', async (t) => {
  const { port, lockDir } = await scene(t);
  const leased = leaseSync({ ports: port, lockDir });
  await assert.rejects(leased.waitForServer({ timeout: 0 }), { code: 'ERR_PORTLOCK_TIMEOUT' });
  await assert.rejects(leased.waitUntilListening({ timeout: 20 }), {
    code: 'ERR_PORTLOCK_TIMEOUT',
  });
  const reason = new Error('enough');
  const controller = new AbortController();
  const waiting = leased.waitForServer({ signal: controller.signal });
  controller.abort(reason);
  await assert.rejects(waiting, reason);
  const ended = leased.waitForServer();
  leased.release();
  assert.equal(isFree({ lockDir }, port), true);
  await assert.rejects(ended, { code: 'ERR_PORTLOCK_RELEASED' });
  for (const options of [{ pid: 'x' }, { timeout: '1' }, { port: 1 }, 1]) {
    await assert.rejects(leased.waitForServer(options), TypeError);
  }
});

test('a set of ports has its operations', () => {
  const ports = new PortSet('4000-4999,!4045,7000');
  assert.equal(ports.size, 1000);
  assert.deepEqual([ports.has(4045), ports.has(4046), ports.has(4046.5)], [false, true, false]);
  assert.equal(`${ports}`, '4000-4044,4046-4999,7000');
  assert.equal(JSON.stringify(new PortSet(4000)), '"4000"');
  assert.equal(inspect(new PortSet([4002, 4000, 4001])), 'PortSet(3) { 4000-4002 }');
  assert.deepEqual([...new PortSet(new Set([2, 1]))], [1, 2]);
  const few = new PortSet('4000-4002');
  assert.equal(`${few.union(new PortSet(4003))}`, '4000-4003');
  assert.equal(`${few.difference(new PortSet(4001))}`, '4000,4002');
  assert.equal(`${few.intersection(new PortSet('4001-9000'))}`, '4001-4002');
  assert.equal(few.intersection(new PortSet(1)).size, 0);
  assert.equal(`${few.union(new PortSet(''))}`, '4000-4002');
  assert.equal(`${few.difference(new PortSet([]))}`, '4000-4002');
  const ephemeral = PortSet.ephemeralPorts();
  assert.equal(PortSet.serverPorts().intersection(ephemeral).size, 0);
  assert.throws(() => new PortSet('4000-x'), { code: 'ERR_PORTLOCK_INVALID_PORTS' });
  assert.throws(() => new PortSet(), { code: 'ERR_INVALID_ARG_TYPE' });
});

test('a URL has the requested scheme and path', async (t) => {
  const { port, lockDir } = await scene(t);
  withLease(leaseSync({ ports: port, lockDir, host: '127.0.0.1' }), (lease) => {
    assert.equal(lease.url(), `http://127.0.0.1:${port}/`);
    assert.equal(lease.url('ws', 'chat'), `ws://127.0.0.1:${port}/chat`);
    assert.equal(new URL(lease.url('http', '@elsewhere.test/')).host, `127.0.0.1:${port}`);
    assert.throws(() => lease.url(''), { code: 'ERR_INVALID_ARG_VALUE' });
    assert.throws(() => lease.url(null), { code: 'ERR_INVALID_ARG_TYPE' });
    assert.throws(() => lease.url('http', {}), { code: 'ERR_INVALID_ARG_TYPE' });
  });
});

test('the number of a lease cannot be changed', async (t) => {
  const { port, lockDir } = await scene(t);
  withLease(leaseSync({ ports: port, lockDir }), (lease) => {
    assert.throws(() => (lease.port = 5), TypeError);
    assert.equal(lease.port, port);
    assert.throws(() => new FreePort(), { code: 'ERR_ILLEGAL_CONSTRUCTOR' });
    assert.throws(() => new FreePort({ port }), { code: 'ERR_ILLEGAL_CONSTRUCTOR' });
  });
});

test('sets of ports are compared and combined by their ports', () => {
  const ports = new PortSet('4000-4010');
  assert.deepEqual(ports, new PortSet([...ports]));
  assert.notDeepEqual(ports, new PortSet('4000-4009'));
  assert.deepEqual(new PortSet('1,3-4').ranges, [
    [1, 1],
    [3, 4],
  ]);
  assert.equal(`${ports.union(4020)}`, '4000-4010,4020');
  assert.equal(`${ports.difference('4001-4010')}`, '4000');
  assert.equal(`${ports.intersection([4000, 5000])}`, '4000');
  assert.equal(`${ports.union('4100,!4005')}`, '4000-4010,4100');
  assert.throws(() => ports.union(10n), { code: 'ERR_INVALID_ARG_TYPE' });
  assert.throws(() => ports.difference(undefined), { code: 'ERR_INVALID_ARG_TYPE' });
  assert.equal(ports.has('4000'), false);
  assert.equal(ports.has(Symbol()), false);
});

test('options that do nothing and null are errors', async (t) => {
  const { port, lockDir } = await scene(t);
  const code = 'ERR_INVALID_ARG_VALUE';
  assert.throws(() => leaseSync({ ports: port, lockDir, root: '/' }), { code });
  assert.throws(() => leaseSync({ ports: port, lockDir, orAny: true }), { code });
  const type = { code: 'ERR_INVALID_ARG_TYPE' };
  assert.throws(() => leaseSync({ ports: port, lockDir, host: ['127.0.0.1', , '::1'] }), type);
  await assert.rejects(lease({ ports: port, lockDir, signal: { aborted: false } }), type);
  const held = leaseSync({ ports: port, lockDir });
  await assert.rejects(held.waitForServer({ pid: null }), type);
  await assert.rejects(held.waitUntilListening({ timeout: null }), type);
  held.release();
});

test('an error has only the properties that it needs', async (t) => {
  const { port, lockDir } = await scene(t);
  const held = leaseSync({ ports: port, lockDir });
  assert.throws(
    () => leaseSync({ ports: port, lockDir, timeout: 0 }),
    (error) => !('server' in error) && !('errno' in error) && 'counts' in error,
  );
  held.release();
  assert.throws(
    () => new PortSet({ length: 1e6, ...Array(1000).fill('x'.repeat(1000)) }),
    (error) => error.message.length < 500,
  );
});
