import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';

import { isFree, lineReader, root, run, scene } from './support.mjs';

const BIN = join(root, 'dist/bin.cjs');
const unix = { skip: process.platform === 'win32' && 'a process cannot be replaced on Windows' };

function environment({ lockDir, ports }, more = {}) {
  const env = { ...process.env, PORTLOCK_DIR: lockDir, PORTLOCK_PORTS: `${ports}`, ...more };
  delete env.npm_command;
  return { ...env, ...more };
}

test('the exit status is that of the command', unix, async (t) => {
  const place = await scene(t);
  const env = environment(place);
  const command = (code) => run(process.execPath, [BIN, 'run', '--', 'sh', '-c', code], { env });
  assert.deepEqual(await command('exit 42'), { status: 42, signal: null, output: '' });
  assert.equal((await command('kill -KILL $$')).signal, 'SIGKILL');
  assert.deepEqual(await command('echo $PORT'), {
    status: 0,
    signal: null,
    output: `${place.port}\n`,
  });
  const missing = await run(process.execPath, [BIN, 'run', '--', 'no-such-command'], { env });
  assert.equal(missing.status, 127);
  const usage = await run(process.execPath, [BIN, 'no-such-command'], { env });
  assert.equal(usage.status, 125);
});

test('signals reach the command, which has the pid and parent of the wrapper', unix, async (t) => {
  const place = await scene(t);
  const code = 'trap "echo got it; exit 7" TERM; echo $$ $PPID; while :; do sleep 0.01; done';
  const child = spawn(process.execPath, [BIN, 'run', '--', 'sh', '-c', code], {
    env: environment(place),
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.after(() => child.kill('SIGKILL'));
  const line = lineReader(child.stdout);
  assert.equal(await line(), `${child.pid} ${process.pid}`);
  assert.equal(isFree(place, place.port), false);
  child.kill('SIGTERM');
  assert.equal(await line(), 'got it');
  assert.deepEqual(await once(child, 'close'), [7, null]);
  assert.equal(isFree(place, place.port), true);
});

test('pick leases for its caller, not for the wrapper', unix, async (t) => {
  const place = await scene(t);
  const code = `P=$("$0" "$1" pick); echo "$P"; read -r end`;
  const child = spawn('sh', ['-c', code, process.execPath, BIN], {
    env: environment(place, { npm_command: 'exec' }),
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  t.after(() => child.kill('SIGKILL'));
  assert.equal(await lineReader(child.stdout)(), `${place.port}`);
  assert.equal(isFree(place, place.port), false);
  child.stdin.end('\n');
  await once(child, 'close');
  assert.equal(isFree(place, place.port), true);
});

test('npx runs the program', { skip: !existsSync(join(root, 'node_modules')) }, async (t) => {
  const place = await scene(t);
  const env = environment(place);
  const shown = await run('npx --no -- portlock --version', [], { env, shell: true });
  assert.match(shown.output, /^portlock \d/);
  // Its output is not read through a pipe, so npm would be mistaken for the caller.
  const picked = await run('npx --no -- portlock pick >/dev/null', [], { env, shell: true });
  assert.equal(picked.status, 125);
  assert.match(picked.output, /--pid/);
  assert.equal(isFree(place, place.port), true);
  const named = `npx --no -- portlock pick --pid ${process.pid} >/dev/null`;
  assert.equal((await run(named, [], { env, shell: true })).status, 0);
  assert.equal(isFree(place, place.port), false);
});
