#!/usr/bin/env node
/** The program. */

import { spawn } from 'node:child_process';
import { fstatSync } from 'node:fs';
import { constants } from 'node:os';

import type * as Binding from './binding.cjs';
import { PortlockError } from './errors.cjs';
import { program } from './native.cjs';

/** The exit status of the program for its own errors, not those of its command. */
const FAILED = 125;

function main(): void {
  const args = process.argv.slice(2);
  const path = program();
  refuseToLeaseForWrapper(args);
  // The program replaces this process, so signals, exit status and parent are the program's.
  const { binding } = require('./binding.cjs') as typeof Binding;
  const error = binding.exec(path, args);
  if (error !== null) {
    fail(`cannot execute ${path}: ${error}`);
  }
  wrap(path, args);
}

/**
 * Ends the process if `pick` would lease for npm or for this process, which end right away.
 *
 * If the output of `pick` is read through a pipe, the program finds the process that reads it, and
 * skips those that only pass it on. Otherwise it would mistake its parent for its caller.
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

/** Runs the program as a child, on systems that cannot replace a process. */
function wrap(path: string, args: string[]): void {
  // The console sends these to all of its processes. This one must end after the program.
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
  // For example, the native part is missing. The message is enough, without a stack trace.
  if (!(error instanceof PortlockError)) {
    throw error;
  }
  fail(error.message);
}
