import type { FreePort } from './free-port.cjs';
import { lease } from './lease.cjs';
import type { AsyncOptions, LeaseOptions } from './options.cjs';

/** A fixture of Vitest's or Playwright's `test.extend`. */
export type PortFixture = (
  // Both runners read the names of other fixtures from this pattern.
  context: object,
  use: (port: FreePort) => Promise<void>,
) => Promise<void>;

/**
 * Returns a fixture for `test.extend`: a port that is leased before the test and released after it.
 *
 * @example
 * const test = base.extend({ port: portFixture({ ports: '4000-6000' }) });
 * test('serves', async ({ port }) => { … });
 */
export function portFixture(options?: LeaseOptions & AsyncOptions): PortFixture {
  return async ({}, use) => {
    const port = await lease(options);
    try {
      await use(port);
    } finally {
      port.release();
    }
  };
}
