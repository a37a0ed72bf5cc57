import type { Lease, Request } from './binding.cjs';
import { acquire, acquireSync, leasesOf } from './call.cjs';
import { FreePort, FreePorts } from './free-port.cjs';
import {
  ALL_OPTIONS,
  checkCount,
  checkOffsets,
  checkOptions,
  OPTIONS,
  toRequest,
  type AsyncOptions,
  type LeaseOptions,
} from './options.cjs';

/**
 * Leases a free port, and waits for one as long as `timeout` allows.
 *
 * @throws {PortlockError} `ERR_PORTLOCK_EXHAUSTED` if no port became free in time; its message names
 * some holders.
 * @example
 * await using port = await lease({ ports: '4000-6000' });
 * const server = http.createServer(app).listen(port.port);
 */
export async function lease(options?: LeaseOptions & AsyncOptions): Promise<FreePort> {
  return one(await all(options, {}));
}

/**
 * Leases a free port as {@link lease} does, and blocks this thread while it waits.
 *
 * @example
 * const port = leaseSync({ timeout: 0 });
 */
export function leaseSync(options?: LeaseOptions): FreePort {
  const checked = checkOptions(options, OPTIONS);
  return one(leasesOf(acquireSync(toRequest(checked))));
}

/**
 * Leases `n` free ports, or none. While too few are free, it waits without keeping any, so callers
 * that each want several ports never deadlock.
 */
export async function leaseMany(
  n: number,
  options?: LeaseOptions & AsyncOptions,
): Promise<FreePorts> {
  return several(await all(options, { many: checkCount(n) }));
}

/** Leases `n` free ports that follow each other, in ascending order, or none. */
export async function leaseBlock(
  n: number,
  options?: LeaseOptions & AsyncOptions,
): Promise<FreePorts> {
  return several(await all(options, { block: checkCount(n) }));
}

/**
 * Leases the ports at all `offsets` from one of the ports to choose from, in that order, or none.
 * For servers that derive one port from another.
 *
 * @example
 * // A Redis Cluster node: a port, and the port of its bus, 10000 above it.
 * const [port, bus] = await leaseOffsets([0, 10000]);
 */
export async function leaseOffsets(
  offsets: Iterable<number>,
  options?: LeaseOptions & AsyncOptions,
): Promise<FreePorts> {
  return several(await all(options, { offsets: checkOffsets(offsets) }));
}

async function all(
  options: (LeaseOptions & AsyncOptions) | undefined,
  shape: Request['shape'],
): Promise<Lease[]> {
  const checked = checkOptions(options, ALL_OPTIONS);
  return leasesOf(await acquire(toRequest(checked, shape), checked));
}

function one([lease]: Lease[]): FreePort {
  return FreePort.of(lease);
}

function several(leases: Lease[]): FreePorts {
  return FreePorts.from(leases, (lease) => FreePort.of(lease)) as FreePorts;
}
