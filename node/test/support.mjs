import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { leaseBlock, leaseSync } from 'portlock';

export const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** Returns `n` contiguous ports that no other test gets until this process ends. */
export async function ownPorts(n) {
  const block = await leaseBlock(n, { label: 'test of portlock for Node.js' });
  // Delegated, so that this process can lease them in another lock directory.
  return block.map((port) => port.delegateTo(process.pid));
}

/** Returns a lock directory and `n` ports for one test. */
export async function scene(t, n = 1) {
  const lockDir = await mkdtemp(join(tmpdir(), 'portlock-node-'));
  t.after(() => rm(lockDir, { recursive: true }));
  const ports = await ownPorts(n);
  return { lockDir, ports, port: ports[0] };
}

/** Returns whether another caller can lease the port now. */
export function isFree({ lockDir }, port) {
  try {
    leaseSync({ ports: port, lockDir, timeout: 0 }).release();
    return true;
  } catch (error) {
    if (error.code === 'ERR_PORTLOCK_EXHAUSTED') {
      return false;
    }
    throw error;
  }
}

/** Starts Node.js with the text of a module that can use `lockDir` and `port` and prints lines. */
export function start(t, { lockDir, port }, code, ...options) {
  const module = `
    import { lease, leaseSync, leaseMany, listen } from 'portlock';
    const lockDir = ${JSON.stringify(lockDir)};
    const port = ${port};
    const say = (text) => process.stdout.write(text + '\\n');
    ${code}`;
  const args = [...options, '--input-type=module', '--eval', module];
  const child = spawn(process.execPath, args, { cwd: root, stdio: ['pipe', 'pipe', 'inherit'] });
  t.after(() => child.kill('SIGKILL'));
  child.ended = once(child, 'close').then(([status, signal]) => ({ status, signal }));
  child.line = lineReader(child.stdout);
  return child;
}

/** Returns a function that reads the next line of a stream, or undefined at its end. */
export function lineReader(stream) {
  const lines = [];
  let rest = '';
  let wake = () => undefined;
  let isEnded = false;
  stream.setEncoding('utf8');
  stream.on('data', (data) => {
    const parts = (rest + data).split('\n');
    rest = parts.pop();
    lines.push(...parts);
    wake();
  });
  stream.on('end', () => {
    isEnded = true;
    wake();
  });
  return async () => {
    while (lines.length === 0 && !isEnded) {
      await new Promise((resolve) => (wake = resolve));
    }
    return lines.shift();
  };
}

/** Runs a command to its end, and returns its status and output. */
export async function run(command, args, options = {}) {
  const child = spawn(command, args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'], ...options });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream?.setEncoding('utf8').on('data', (data) => (output += data));
  }
  const [status, signal] = await once(child, 'close');
  return { status, signal, output };
}
