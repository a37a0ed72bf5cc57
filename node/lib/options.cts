import { isIP } from 'node:net';

import type { Request } from './binding.cjs';
import { invalidType, invalidValue, outOfRange } from './errors.cjs';
import { checkPort, iterable, text, type PortsLike } from './port-set.cjs';

/** Options of a lease. */
export interface LeaseOptions {
  /** Ports to choose from; by default `PortSet.serverPorts()`. */
  ports?: PortsLike | undefined;
  /**
   * IP address, or several, on which the port must be free. By default it must be free on every
   * address of this machine.
   */
  host?: string | readonly string[] | undefined;
  /** Protocol, or both, for which the port must be free; by default `'tcp'`. */
  protocol?: 'tcp' | 'udp' | 'tcp+udp' | undefined;
  /**
   * Milliseconds to wait while no port is free; 30,000 by default. With 0, each port is tried
   * once. Use `Infinity` only with a `signal`.
   */
  timeout?: number | undefined;
  /** What the port is leased for, as text for people. Truncated after about 100 bytes. */
  label?: string | undefined;
  /** Determines where the search starts: the same text leads to the same port while it is free. */
  prefer?: string | undefined;
  /**
   * Leases the port that is reserved for this name in `root`, and reserves one first if none is:
   * the same port every day. No other caller gets it, leased or not.
   */
  name?: string | undefined;
  /** Directory that the name belongs to; by default the enclosing project or git worktree. */
  root?: string | undefined;
  /** Whether to lease another port if another program has bound the one that is reserved. */
  orAny?: boolean | undefined;
  /**
   * Whether a port in TIME_WAIT counts as free. By default it is the last resort, leased only if no
   * other port is free. Servers of Node.js can bind it.
   */
  reuseAddress?: boolean | undefined;
  /** Whether the port is kept bound too (Linux only), so that the ephemeral range is safe. */
  holdSocket?: boolean | undefined;
  /** Lock directory, which must exist. Only callers with the same directory exclude each other. */
  lockDir?: string | undefined;
}

/** Options of calls that return a promise. */
export interface AsyncOptions {
  /** Ends the wait, and rejects the promise with its reason, within about 0.1 seconds. */
  signal?: AbortSignal | undefined;
  /** Whether a wait keeps the program alive; `true` by default. */
  ref?: boolean | undefined;
}

const LEASE_OPTIONS = [
  'ports',
  'host',
  'protocol',
  'timeout',
  'label',
  'prefer',
  'name',
  'root',
  'orAny',
  'reuseAddress',
  'holdSocket',
  'lockDir',
] as const satisfies readonly (keyof LeaseOptions)[];
const ASYNC_OPTIONS = ['signal', 'ref'] as const satisfies readonly (keyof AsyncOptions)[];

/** @internal */
export const OPTIONS: readonly string[] = LEASE_OPTIONS;
/** @internal */
export const ALL_OPTIONS: readonly string[] = [...LEASE_OPTIONS, ...ASYNC_OPTIONS];

/** Options of a wait for a server. */
export interface WaitOptions extends AsyncOptions {
  /** Milliseconds to wait; 30,000 by default. */
  timeout?: number | undefined;
}

/** @internal */
export const WAIT_OPTIONS: readonly string[] = ['timeout', ...ASYNC_OPTIONS];

/**
 * Checks that `options` is an object with no other properties than `allowed`. Otherwise a
 * misspelled option would lease any port.
 * @internal
 */
export function checkOptions<T extends object>(
  options: T | undefined,
  allowed: readonly string[],
): T {
  if (options === undefined) {
    return {} as T;
  }
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw invalidType('options', 'an object', options);
  }
  for (const [name, value] of Object.entries(options)) {
    if (!allowed.includes(name) && value !== undefined) {
      const known = allowed.join(', ');
      throw invalidValue('options', `an object of the options ${known}`, { [name]: value });
    }
  }
  return options;
}

/** @internal */
export function toRequest(options: LeaseOptions, shape: Request['shape'] = {}): Request {
  const request: Request = { hosts: hosts(options.host), shape };
  if (options.ports !== undefined) {
    request.ports = text(options.ports);
  }
  if (options.protocol !== undefined) {
    if (!['tcp', 'udp', 'tcp+udp'].includes(options.protocol)) {
      throw invalidValue('protocol', "'tcp', 'udp' or 'tcp+udp'", options.protocol);
    }
    request.protocol = options.protocol;
  }
  if (options.timeout !== undefined) {
    request.timeout = checkTimeout(options.timeout);
  }
  for (const name of ['label', 'prefer', 'name', 'root', 'lockDir'] as const) {
    const value: unknown = options[name];
    if (value !== undefined) {
      request[name] = checkString(name, value);
    }
  }
  for (const name of ['orAny', 'reuseAddress', 'holdSocket'] as const) {
    const value: unknown = options[name];
    if (value !== undefined) {
      request[name] = checkBoolean(name, value);
    }
  }
  for (const option of ['root', 'orAny'] as const) {
    if (request[option] !== undefined && request.name === undefined) {
      throw invalidValue(option, 'an option of a lease with a name', request[option]);
    }
  }
  return request;
}

/** @internal */
export function checkTimeout(value: unknown): number {
  if (typeof value !== 'number') {
    throw invalidType('timeout', 'a number of milliseconds', value);
  }
  if (!(value >= 0)) {
    throw outOfRange('timeout', '0 or more milliseconds', value);
  }
  return value;
}

/** @internal */
export function checkSignal(value: unknown): AbortSignal | undefined {
  // Not `instanceof`: a test runner's signal can come from another realm.
  const signal = value as AbortSignal | null | undefined;
  if (
    signal === undefined ||
    (typeof signal === 'object' &&
      signal !== null &&
      'aborted' in signal &&
      typeof signal.addEventListener === 'function' &&
      typeof signal.removeEventListener === 'function')
  ) {
    return signal;
  }
  throw invalidType('signal', 'an AbortSignal', value);
}

/** @internal */
export function checkBoolean(name: string, value: unknown): boolean {
  if (typeof value !== 'boolean') {
    throw invalidType(name, 'a boolean', value);
  }
  return value;
}

/** @internal */
export function checkCount(value: unknown): number {
  if (typeof value !== 'number') {
    throw invalidType('the number of ports', 'a number', value);
  }
  if (!Number.isInteger(value) || value < 0 || value > 65_535) {
    throw outOfRange('the number of ports', 'an integer from 0 to 65535', value);
  }
  return value;
}

/** @internal */
export function checkOffsets(value: unknown): number[] {
  return Array.from(iterable('offsets', value), (offset) => {
    return offset === 0 ? 0 : checkPort('each of offsets', offset);
  });
}

/** @internal */
export function checkPid(value: unknown): number {
  if (typeof value !== 'number') {
    throw invalidType('pid', 'a number', value);
  }
  if (!Number.isInteger(value) || value < 1 || value > 0xffff_ffff) {
    throw outOfRange('pid', 'the pid of a process', value);
  }
  return value;
}

/** @internal */
export function checkString(name: string, value: unknown): string {
  if (typeof value !== 'string') {
    throw invalidType(name, 'a string', value);
  }
  return value;
}

/** @internal */
export function hosts(host: LeaseOptions['host']): string[] {
  const hosts: unknown[] = host === undefined ? [] : typeof host === 'string' ? [host] : list(host);
  const addresses = hosts.map((host) => {
    const address = checkString('host', host);
    if (isIP(address) === 0 || address.includes('%')) {
      throw invalidValue('host', 'an IP address without a zone', address);
    }
    return address;
  });
  return [...new Set(addresses)];
}

function list(host: unknown): unknown[] {
  if (!Array.isArray(host)) {
    throw invalidType('host', 'an IP address or an array of them', host);
  }
  // A hole becomes undefined.
  return Array.from(host);
}
