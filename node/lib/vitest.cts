/** Helpers for Vitest. They import nothing from it, and so work with any of its versions. */

import { FreePort } from './free-port.cjs';
import { lease } from './lease.cjs';
import type { LeaseOptions } from './options.cjs';

export { portFixture, type PortFixture } from './fixture.cjs';

/** The argument of a global setup of Vitest, as far as it is used. */
export interface Project {
  provide(key: never, value: never): void;
}

/**
 * Returns a global setup that leases a port for each name, for the whole run, and provides their
 * numbers to the tests as `inject('ports')`.
 *
 * @example
 * // global-setup.ts
 * export default portSetup({ api: {}, web: { ports: '4000-6000' } });
 */
export function portSetup<Name extends string>(
  ports: Record<Name, LeaseOptions>,
): (project: Project) => Promise<() => void> {
  return async (project) => {
    const leases: FreePort[] = [];
    const teardown = () => leases.forEach((port) => port.release());
    try {
      const numbers: Record<string, number> = {};
      for (const [name, options] of Object.entries<LeaseOptions>(ports)) {
        const port = await lease({ label: name, ...options });
        leases.push(port);
        numbers[name] = port.port;
      }
      project.provide('ports' as never, numbers as never);
    } catch (error) {
      teardown();
      throw error;
    }
    return teardown;
  };
}
