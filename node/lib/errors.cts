import { inspect } from 'node:util';

import type { Failure, ServerProcess } from './binding.cjs';

/** How many ports could not be leased, by reason. */
export interface PortCounts {
  /** Leased by a caller of portlock. */
  readonly leased: number;
  /** Reserved for a name that the call did not request. */
  readonly reserved: number;
  /** Bound by programs outside any lease. */
  readonly bound: number;
  /** In TIME_WAIT, or bound with `SO_REUSEADDR` and not listening. */
  readonly lingering: number;
  /** Not permitted to this process. */
  readonly notPermitted: number;
  /** Free, but not enough of them. */
  readonly notEnough: number;
}

/** A leased port, and its holder. */
export interface PortHolder {
  readonly port: number;
  /** Such as `pid 812 "node" (api)`; missing if that is not known. */
  readonly holder?: string;
}

/** The `code` of a {@link PortlockError}. */
export type PortlockErrorCode =
  /** The set of ports is empty, too small, or not a set of ports. */
  | 'ERR_PORTLOCK_INVALID_PORTS'
  /** The name or root directory of a reservation cannot be used. */
  | 'ERR_PORTLOCK_INVALID_NAME'
  /** Every port is leased or in use, and the timeout is over. */
  | 'ERR_PORTLOCK_EXHAUSTED'
  /** The lock directory is missing, cannot be created or cannot be trusted. */
  | 'ERR_PORTLOCK_LOCK_DIR'
  /** A lock file could not be opened, created, locked, written or unlocked. */
  | 'ERR_PORTLOCK_LOCK'
  /** A socket could not be created, bound or connected. */
  | 'ERR_PORTLOCK_PROBE'
  /** The wait did not succeed in time. */
  | 'ERR_PORTLOCK_TIMEOUT'
  /** The server that answers belongs to another process. */
  | 'ERR_PORTLOCK_OTHER_SERVER'
  /** The process that a lease should belong to does not exist. */
  | 'ERR_PORTLOCK_PROCESS'
  /** This process may not bind any of the ports. */
  | 'ERR_PORTLOCK_PERMISSION_DENIED'
  /** Not possible on this system, or not in this combination. */
  | 'ERR_PORTLOCK_UNSUPPORTED'
  /** The lease has ended. */
  | 'ERR_PORTLOCK_RELEASED'
  /** The native part of portlock for this system is missing. */
  | 'ERR_PORTLOCK_NO_BINARY'
  | (string & {});

/**
 * The error of every operation that fails for any reason but invalid arguments.
 *
 * The message names the operation, the path or port, and the cause; `code` is for programs.
 * An invalid argument causes a `TypeError` or `RangeError` with a code of Node.js, such as
 * `ERR_INVALID_ARG_TYPE`.
 */
export class PortlockError extends Error {
  override readonly name = 'PortlockError';
  readonly code: PortlockErrorCode;
  /** Why no port could be leased, if that is the error. */
  declare readonly counts?: PortCounts;
  /** Some of the leased ports, and their holders. */
  declare readonly holders?: readonly PortHolder[];
  /** The server that answers instead of the expected one. */
  declare readonly server?: ServerProcess;
  /** The lock file or directory that the message is about. */
  declare readonly path?: string;
  /** The system's error number, if a system call failed. */
  declare readonly errno?: number;

  constructor(code: PortlockErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }

  /** @internal */
  static from({ code, message, ...details }: Failure): PortlockError {
    return Object.assign(new PortlockError(code, message), details);
  }
}

/** Returns the beginning of a value, for a message. */
function shown(value: unknown): string {
  const text = inspect(value, { depth: 0, maxArrayLength: 5, maxStringLength: 100 });
  return text.length > 200 ? `${text.slice(0, 200)}…` : text;
}

/**
 * An error for an argument of the wrong type, as Node.js's own functions throw it.
 * @internal
 */
export function invalidType(name: string, expected: string, value: unknown): TypeError {
  const message = `${name} must be ${expected}, but is ${shown(value)}`;
  return Object.assign(new TypeError(message), { code: 'ERR_INVALID_ARG_TYPE' });
}

/** @internal */
export function invalidValue(name: string, expected: string, value: unknown): TypeError {
  const message = `${name} must be ${expected}, but is ${shown(value)}`;
  return Object.assign(new TypeError(message), { code: 'ERR_INVALID_ARG_VALUE' });
}

/** @internal */
export function outOfRange(name: string, expected: string, value: unknown): RangeError {
  const message = `${name} must be ${expected}, but is ${shown(value)}`;
  return Object.assign(new RangeError(message), { code: 'ERR_OUT_OF_RANGE' });
}
