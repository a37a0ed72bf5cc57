import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { setMaxListeners } from 'node:events';
import { chown, readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import { lease, leaseMany, leaseSync } from 'portlock';

import { isFree, scene, start } from './support.mjs';

test('a waiter gets the port that is released', async (t) => {
  const { port, lockDir } = await scene(t);
  const held = leaseSync({ ports: port, lockDir });
  const waiting = lease({ ports: port, lockDir });
  await sleep(20);
  held.release();
  assert.equal((await waiting).port, port);
});

test('a wait ends with its timeout', async (t) => {
  const { port, lockDir } = await scene(t);
  const held = leaseSync({ ports: port, lockDir });
  const exhausted = { code: 'ERR_PORTLOCK_EXHAUSTED', message: /after 0\.\d s/ };
  await assert.rejects(lease({ ports: port, lockDir, timeout: 150 }), exhausted);
  assert.throws(() => leaseSync({ ports: port, lockDir, timeout: 150 }), exhausted);
  held.release();
});

test('a signal ends a wait with its reason, and nothing is leased', async (t) => {
  const place = await scene(t);
  const { port, lockDir } = place;
  const held = leaseSync({ ports: port, lockDir });
  const reason = new Error('enough');
  const controller = new AbortController();
  const options = { ports: port, lockDir, timeout: Infinity, signal: controller.signal };
  const waits = [lease(options), leaseMany(1, options)];
  setTimeout(() => controller.abort(reason), 20);
  await Promise.all(waits.map((wait) => assert.rejects(wait, (error) => error === reason)));
  held.release();
  assert.equal(isFree(place, port), true);

  await assert.rejects(lease(options), (error) => error === reason);
  const timeout = AbortSignal.timeout(20);
  const again = leaseSync({ ports: port, lockDir });
  await assert.rejects(lease({ ...options, signal: timeout }), { name: 'TimeoutError' });
  again.release();
});

test('a signal that arrives together with the port ends its lease', async (t) => {
  const place = await scene(t);
  const { port, lockDir } = place;
  for (let i = 0; i < 50; i++) {
    const controller = new AbortController();
    const leasing = lease({ ports: port, lockDir, signal: controller.signal });
    setImmediate(() => controller.abort());
    const outcome = await leasing.then(
      (port) => port.release(),
      (error) => assert.equal(error.name, 'AbortError'),
    );
    assert.equal(outcome, undefined);
    assert.equal(isFree(place, port), true);
  }
});

test('a signal keeps no listener of a call that has ended', async (t) => {
  const { port, lockDir } = await scene(t);
  const { signal } = new AbortController();
  let listeners = 0;
  const counting = {
    aborted: false,
    throwIfAborted: () => signal.throwIfAborted(),
    addEventListener: () => listeners++,
    removeEventListener: () => listeners--,
  };
  (await lease({ ports: port, lockDir, signal: counting })).release();
  assert.equal(listeners, 0);
});

test('a signal that cannot be used is an error of the call', async (t) => {
  const place = await scene(t);
  const options = { ports: place.port, lockDir: place.lockDir };
  // The native part calls back outside any promise, where an exception would end the process.
  const lacking = { aborted: false, addEventListener: () => undefined };
  const failing = {
    ...lacking,
    addEventListener: () => {
      throw new Error('expected');
    },
    removeEventListener: () => undefined,
  };
  await assert.rejects(lease({ ...options, signal: lacking }), { code: 'ERR_INVALID_ARG_TYPE' });
  await assert.rejects(lease({ ...options, signal: failing }), /expected/);
  assert.equal(isFree(place, place.port), true);
});

test('waiters delay neither files nor timers', async (t) => {
  const { port, lockDir } = await scene(t);
  const held = leaseSync({ ports: port, lockDir });
  const controller = new AbortController();
  setMaxListeners(0, controller.signal);
  const options = { ports: port, lockDir, signal: controller.signal };
  const waits = Array.from({ length: 20 }, () => lease(options));
  const here = fileURLToPath(import.meta.url);
  // libuv has four threads for these.
  await Promise.all(Array.from({ length: 20 }, () => readFile(here)));
  await sleep(1);
  controller.abort();
  const outcomes = await Promise.allSettled(waits);
  assert.deepEqual(new Set(outcomes.map(({ status }) => status)), new Set(['rejected']));
  held.release();
});

test('a pending wait keeps the program alive, unless it has no ref', async (t) => {
  const { port, lockDir } = await scene(t);
  const held = leaseSync({ ports: port, lockDir });
  const code = (options) => `
    setImmediate(() => say('waits'));
    const got = await lease({ ports: port, lockDir, ...${options} });
    say('got ' + got);`;
  const refs = start(t, { port, lockDir }, code('{}'));
  const unref = start(t, { port, lockDir }, code('{ ref: false }'));
  // 13: the promise of a top-level await will not be settled.
  assert.deepEqual(await unref.ended, { status: 13, signal: null });
  assert.equal(await refs.line(), 'waits');
  held.release();
  assert.equal(await refs.line(), `got ${port}`);
  assert.deepEqual(await refs.ended, { status: 0, signal: null });
});

test(
  'a thread that cannot be started is a PortlockError',
  { skip: spawnSync('prlimit', ['--version']).error && 'prlimit is not installed' },
  async (t) => {
    const { port, lockDir } = await scene(t);
    if (process.getuid() === 0) {
      await chown(lockDir, 65534, 65534);
    }
    const code = `
      import { execFileSync } from 'node:child_process';
      // The system does not limit the superuser.
      if (process.getuid() === 0) process.setuid(65534);
      const held = await lease({ ports: port, lockDir });
      execFileSync('prlimit', ['--pid', process.pid, '--nproc=1']);
      const report = ({ name, code, message }) => say([name, code, message].join());
      await lease({ ports: port, lockDir }).catch(report);
      try { leaseSync({ ports: port, lockDir }) } catch (error) { report(error) }
      held.release();
      say(leaseSync({ ports: port, lockDir }) == port);`;
    const child = start(t, { port, lockDir }, code);
    for (let i = 0; i < 2; i++) {
      assert.match(await child.line(), /^PortlockError,ERR_PORTLOCK,cannot start a thread/);
    }
    assert.equal(await child.line(), 'true');
  },
);

test('leaseSync waits', async (t) => {
  const { port, lockDir } = await scene(t);
  const held = leaseSync({ ports: port, lockDir });
  const child = start(
    t,
    { port, lockDir },
    `say('waits'); say('got ' + leaseSync({ ports: port, lockDir }));`,
  );
  assert.equal(await child.line(), 'waits');
  held.release();
  assert.equal(await child.line(), `got ${port}`);
});

test('many waits share one listener of their signal', async (t) => {
  const place = await scene(t);
  const held = leaseSync({ ports: place.port, lockDir: place.lockDir });
  const warnings = [];
  const warn = (warning) => warnings.push(warning);
  process.on('warning', warn);
  const controller = new AbortController();
  const options = { ports: place.port, lockDir: place.lockDir, signal: controller.signal };
  const waits = Array.from({ length: 20 }, () => lease(options));
  setImmediate(() => controller.abort());
  const outcomes = await Promise.allSettled(waits);
  assert.ok(outcomes.every(({ reason }) => reason?.name === 'AbortError'));
  process.off('warning', warn);
  assert.deepEqual(warnings, []);
  held.release();
});
