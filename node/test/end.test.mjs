import assert from 'node:assert/strict';
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';

import { lease, leaseSync } from 'portlock';

import { isFree, root, scene, start } from './support.mjs';

// Until the standard input ends.
const READY = 'new Promise((resolve) => process.stdin.on("end", resolve).resume())';
const LEASE = 'const held = await lease({ ports: port, lockDir }); say("leased");';

for (const [how, code, expected] of [
  ['process.exit', 'process.exit(3)', { status: 3, signal: null }],
  ['an uncaught exception', 'setImmediate(() => { throw new Error("expected") })', { status: 1 }],
  ['an unhandled rejection', 'Promise.reject(new Error("expected"))', { status: 1 }],
  ['the end of the program', '', { status: 0, signal: null }],
  ['SIGKILL', 'process.kill(process.pid, "SIGKILL")', { signal: 'SIGKILL' }],
  [
    'SIGTERM',
    'process.kill(process.pid, "SIGTERM"); setInterval(() => 0, 1e4)',
    { signal: 'SIGTERM' },
  ],
  ['process.abort', 'process.abort()', { signal: 'SIGABRT' }],
]) {
  test(`a lease ends with ${how}`, async (t) => {
    const place = await scene(t);
    const child = start(t, place, `${LEASE} await ${READY}; ${code}`);
    assert.equal(await child.line(), 'leased');
    assert.equal(isFree(place, place.port), false);
    child.stdin.end();
    const outcome = await child.ended;
    assert.equal(isFree(place, place.port), true);
    for (const [name, value] of Object.entries(expected)) {
      assert.equal(outcome[name], value, name);
    }
  });
}

test('process.exit ends a program that waits', async (t) => {
  const place = await scene(t);
  const held = leaseSync({ ports: place.port, lockDir: place.lockDir });
  const code = `lease({ ports: port, lockDir }); await ${READY}; process.exit(4);`;
  const child = start(t, place, code);
  child.stdin.end();
  assert.deepEqual(await child.ended, { status: 4, signal: null });
  held.release();
  assert.equal(isFree(place, place.port), true);
});

test('the garbage collector does not end a lease', async (t) => {
  const place = await scene(t);
  const code = `
    await lease({ ports: port, lockDir });
    for (let i = 0; i < 10; i++) {
      globalThis.gc();
      await new Promise(setImmediate);
    }
    say('collected');
    await ${READY};`;
  const child = start(t, place, code, '--expose-gc');
  assert.equal(await child.line(), 'collected');
  assert.equal(isFree(place, place.port), false);
  child.stdin.end();
  await child.ended;
  assert.equal(isFree(place, place.port), true);
});

function worker(t, { lockDir, port }, code) {
  const worker = new Worker(
    `const { parentPort } = require('node:worker_threads');
     const { lease, leaseSync } = require('portlock');
     const lockDir = ${JSON.stringify(lockDir)};
     const port = ${port};
     (async () => { ${code} })();`,
    { eval: true },
  );
  t.after(() => worker.terminate());
  return worker;
}

test('a lease of a worker thread ends with it', async (t) => {
  const place = await scene(t);
  const code = `
    await lease({ ports: port, lockDir });
    parentPort.once('message', () => 0);
    parentPort.postMessage('leased');`;
  for (const end of ['message', 'terminate']) {
    const thread = worker(t, place, code);
    await once(thread, 'message');
    assert.equal(isFree(place, place.port), false);
    if (end === 'terminate') {
      await thread.terminate();
    } else {
      thread.postMessage('end');
      await once(thread, 'exit');
    }
    assert.equal(isFree(place, place.port), true, end);
  }
});

test('the end of a worker does not end a lease of another thread', async (t) => {
  const place = await scene(t);
  const held = leaseSync({ ports: place.port, lockDir: place.lockDir });
  const thread = worker(t, place, `parentPort.postMessage('hello')`);
  await once(thread, 'exit');
  assert.equal(isFree(place, place.port), false);
  held.release();
});

/** Returns the number of threads of this process that wait in calls of portlock. */
async function waitingThreads() {
  const threads = await readdir('/proc/self/task');
  const names = threads.map((id) => readFile(`/proc/self/task/${id}/comm`, 'utf8').catch(() => ''));
  return (await Promise.all(names)).filter((name) => name === 'portlock\n').length;
}

for (const call of ['lease', 'leaseSync']) {
  test(`a worker that is terminated in ${call} leases nothing afterwards`, async (t) => {
    const place = await scene(t);
    const held = leaseSync({ ports: place.port, lockDir: place.lockDir });
    const code = `
      parentPort.postMessage('waits');
      for (let i = 0; i < 4; i++) ${call}({ ports: port, lockDir });`;
    const thread = worker(t, place, code);
    await once(thread, 'message');
    await sleep(50);
    if (process.platform === 'linux') {
      assert.ok((await waitingThreads()) > 0);
    }
    await thread.terminate();
    if (process.platform === 'linux') {
      // They no longer lease anything, and are about to end.
      for (let i = 0; i < 400 && (await waitingThreads()) > 0; i++) await sleep(5);
      assert.equal(await waitingThreads(), 0);
    }
    held.release();
    for (let i = 0; i < 20; i++) {
      assert.equal(isFree(place, place.port), true);
      await sleep(5);
    }
  });
}

test('workers, forked processes and the cluster share leases', async (t) => {
  const place = await scene(t);
  const held = leaseSync({ ports: place.port, lockDir: place.lockDir });
  const code = `parentPort.postMessage(
    await lease({ ports: port, lockDir, timeout: 0 }).catch((error) => error.code))`;
  const [fromWorker] = await once(worker(t, place, code), 'message');
  assert.equal(fromWorker, 'ERR_PORTLOCK_EXHAUSTED');
  const child = fork('test/peer.mjs', [place.lockDir, `${place.port}`], { cwd: root });
  t.after(() => child.kill('SIGKILL'));
  const [fromChild] = await once(child, 'message');
  assert.equal(fromChild, 'ERR_PORTLOCK_EXHAUSTED');
  held.release();
  child.send('again');
  assert.deepEqual(await once(child, 'message'), [place.port, undefined]);
  assert.equal(isFree(place, place.port), false);
  child.send('end');
  await once(child, 'close');
  assert.equal(isFree(place, place.port), true);
  (await lease({ ports: place.port, lockDir: place.lockDir })).release();
});
