#!/usr/bin/env node
/** The program. */

import { spawn } from 'node:child_process';
import { fstatSync } from 'node:fs';
import { constants } from 'node:os';

import type * as Binding from './binding.cjs';
import { PortlockError } from './errors.cjs';
import { program } from './native.cjs';

/** The program's own exit status for errors that are not its command's. */
const FAILED = 125;

function main(): void {
  const args = process.argv.slice(2);
  const path = program();
  refuseToLeaseForWrapper(args);
  // This process becomes the program, so that signals, exit status and parent are the program's.
  const { binding } = require('./binding.cjs') as typeof Binding;
  const error = binding.exec(path, args);
  if (error !== null) {
    fail(`cannot execute ${path}: ${error}`);
  }
  wrap(path, args);
}

/**
 * Ends the process if `pick` would lease for a process of npm, or this one, which ends right away.
 *
 * Where the output of `pick` is read through a pipe, the program finds the process that reads it,
 * behind all that only pass it on. Where it is not, it would take its parent for its caller.
 */
function refuseToLeaseForWrapper(args: string[]): void {
  const picks = args.includes('pick') && !args.some((arg) => /^(--pid|--help|-h)(=|$)/.test(arg));
  const isWrapped = process.platform === 'win32' || (isRunByNpmExec() && !isRead());
  if (picks && isWrapped) {
    const pid = process.platform === 'win32' ? '$PID' : '$$';
    fail(`the lease would end with npm or Node.js: say which process it is for (--pid ${pid})`);
  }
}

function isRunByNpmExec(): boolean {
  return ['exec', 'dlx'].includes(process.env['npm_command'] ?? '');
}

function isRead(): boolean {
  const output = fstatSync(1);
  return output.isFIFO() || output.isSocket();
}

/** Runs the program as a child, where a process cannot be replaced. */
function wrap(path: string, args: string[]): void {
  // The console sends these to all its processes. This one ends after the program.
  for (const signal of ['SIGINT', 'SIGBREAK', 'SIGHUP'] as const) {
    process.on(signal, () => undefined);
  }
  const child = spawn(path, args, { stdio: 'inherit' });
  child.on('error', (error) => fail(`cannot execute ${path}: ${error.message}`));
  child.on('exit', (status, signal) => {
    process.exitCode = status ?? 128 + (signal === null ? 0 : constants.signals[signal]);
  });
}

function fail(message: string): never {
  console.error(`portlock: ${message}`);
  process.exit(FAILED);
}

try {
  main();
} catch (error) {
  // Such as that there is no native part, which should come without a stack.
  if (!(error instanceof PortlockError)) {
    throw error;
  }
  fail(error.message);
}
