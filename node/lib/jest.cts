/** Helpers for Jest. */

import type { FreePort } from './free-port.cjs';
import { lease } from './lease.cjs';
import type { AsyncOptions, LeaseOptions } from './options.cjs';

type AfterEach = (hook: () => void) => void;

const ofTest = new Set<FreePort>();
const ofRun = new Set<FreePort>();
const afterEach = findAfterEach();

afterEach?.(() => releaseAll(ofTest));

/**
 * Leases a port until the end of the test. In tests of `test.concurrent`, whose hooks Jest runs
 * before they end, use `lease()` instead, and release the port in the test.
 */
export async function leaseForTest(options?: LeaseOptions & AsyncOptions): Promise<FreePort> {
  if (afterEach === undefined) {
    throw new Error('leaseForTest() must be called in a test that Jest runs');
  }
  const port = await lease(options);
  ofTest.add(port);
  return port;
}

/**
 * Returns a global setup that leases a port for each name, for the whole run, and sets the
 * environment variable of that name to the port's number.
 *
 * @example
 * // global-setup.js
 * module.exports = portSetup({ API_PORT: {}, WEB_PORT: { ports: '4000-6000' } });
 */
export function portSetup(ports: Record<string, LeaseOptions>): () => Promise<void> {
  return async () => {
    // In watch mode, the ports of the previous run.
    releaseAll(ofRun);
    for (const [name, options] of Object.entries(ports)) {
      const port = await lease({ label: name, ...options });
      ofRun.add(port);
      process.env[name] = `${port}`;
    }
  };
}

function releaseAll(ports: Set<FreePort>): void {
  const all = [...ports];
  ports.clear();
  all.forEach((port) => port.release());
}

/** Returns the hook of the test file that has loaded this module, if it was a test file. */
function findAfterEach(): AfterEach | undefined {
  try {
    // Jest provides this module to each test file, even if it injects no globals.
    return (require('@jest/globals') as { afterEach: AfterEach }).afterEach;
  } catch {
    return undefined;
  }
}
