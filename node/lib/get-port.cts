/** The interface of get-port, with leased ports. Only the import has to be changed. */

import { lookup } from 'node:dns/promises';
import { isIP } from 'node:net';
// Not the global one, which test environments replace.
import { setTimeout } from 'node:timers';

import type { Request } from './binding.cjs';
import { acquire, leasesOf } from './call.cjs';
import { invalidType } from './errors.cjs';
import { FreePort } from './free-port.cjs';
import { checkBoolean, checkString, hosts } from './options.cjs';
import { checkPort, iterable, PortSet } from './port-set.cjs';

export interface Options {
  /** Preferred port, or several, which are tried in this order before any other port. */
  readonly port?: number | Iterable<number> | undefined;
  /** Ports that are not returned. */
  readonly exclude?: Iterable<number> | undefined;
  /** Whether the port is leased until this process ends. By default it is leased for 30 seconds. */
  readonly reserve?: boolean | undefined;
  /** Host on which the port must be free; by default every address of this machine. */
  readonly host?: string | undefined;
}

/** How long a port is leased without `reserve`: the longest time for which get-port locks one. */
const KEPT_MS = 30_000;

const MIN_PORT = 1024;
const MAX_PORT = 65_535;

const leases = new Set<FreePort>();

/**
 * Returns a free TCP port. No other caller, in this process or another, gets it for 30 seconds, or,
 * with `reserve`, until this process ends.
 */
export async function getPort(options: Options = {}): Promise<number> {
  if (typeof options !== 'object' || options === null) {
    throw invalidType('options', 'an object', options);
  }
  const excluded = excludedPorts(options.exclude);
  const reserve = options.reserve !== undefined && checkBoolean('reserve', options.reserve);
  const request: Request = {
    hosts: await addresses(options.host),
    ports: PortSet.serverPorts().difference(new PortSet(excluded)).toString(),
    first: preferredPorts(options.port).filter((port) => !excluded.has(port)),
    shape: {},
  };
  const [lease] = leasesOf(await acquire(request, {}));
  const port = FreePort.of(lease);
  leases.add(port);
  if (!reserve) {
    setTimeout(() => end(port), KEPT_MS).unref();
  }
  return port.port;
}

export default getPort;

/** Generates the port numbers from `from` to `to`, both included. */
export function portNumbers(from: number, to: number): Iterable<number> {
  if (!Number.isInteger(from) || !Number.isInteger(to)) {
    throw new TypeError('`from` and `to` must be integers');
  }
  for (const [name, port] of Object.entries({ from, to })) {
    if (port < MIN_PORT || port > MAX_PORT) {
      throw new RangeError(`\`${name}\` must be between ${MIN_PORT} and ${MAX_PORT}`);
    }
  }
  if (from > to) {
    throw new RangeError('`to` must be greater than or equal to `from`');
  }
  return Array.from({ length: to - from + 1 }, (_, i) => from + i);
}

/** Ends the leases of all ports that were returned, including those with `reserve`. */
export function clearLockedPorts(): void {
  leases.forEach(end);
}

function end(port: FreePort): void {
  leases.delete(port);
  port.release();
}

/** Returns the excluded numbers that are ports. */
function excludedPorts(exclude: Options['exclude']): Set<number> {
  const excluded = new Set<number>();
  for (const port of iterable('exclude', exclude ?? [])) {
    if (!Number.isSafeInteger(port)) {
      throw invalidType('each of exclude', 'a safe integer', port);
    }
    excluded.add(port as number);
  }
  return new Set([...excluded].filter((port) => port >= 1 && port <= MAX_PORT));
}

/** Returns the preferred ports, up to the first 0, which means any port. */
function preferredPorts(port: Options['port']): number[] {
  const preferred: number[] = [];
  for (const number of typeof port === 'number' ? [port] : iterable('port', port ?? [])) {
    if (number === 0) {
      break;
    }
    preferred.push(checkPort('port', number));
  }
  return preferred;
}

/**
 * Returns the address of a host, chosen as `server.listen()` chooses it. Like there, the empty text is
 * every address.
 */
async function addresses(host: Options['host']): Promise<string[]> {
  if (host === undefined || checkString('host', host) === '') {
    return [];
  }
  return hosts(isIP(host) ? host : (await lookup(host)).address);
}
