import { isIPv6 } from 'node:net';
import { inspect } from 'node:util';

import { binding, type Lease, type ServerProcess } from './binding.cjs';
import { run } from './call.cjs';
import { invalidValue, PortlockError } from './errors.cjs';
import {
  checkOptions,
  checkPid,
  checkString,
  checkTimeout,
  WAIT_OPTIONS,
  type WaitOptions,
} from './options.cjs';

/** Milliseconds. */
const DEFAULT_TIMEOUT = 30_000;

/**
 * A leased port: no other caller of portlock gets it until the lease ends.
 *
 * The lease ends with {@link FreePort.release}, at the end of a `using` scope, and with the process
 * or worker thread that leased it, however that ends. The garbage collector never ends it: a lease
 * that is not released lasts as long as the process or worker.
 *
 * Converted to a number or to text, it is the port's number: `` `--port=${port}` ``.
 */
export class FreePort implements Disposable, AsyncDisposable {
  /** The port's number. */
  readonly port: number;
  /** IP address at which a client on this machine reaches a server on this port. */
  readonly host: string;
  readonly #id: number;
  #released = false;

  private constructor(lease: Lease) {
    if (typeof (lease as Lease | undefined)?.id !== 'number') {
      const message = 'FreePort has no public constructor: lease() returns one';
      throw Object.assign(new TypeError(message), { code: 'ERR_ILLEGAL_CONSTRUCTOR' });
    }
    this.port = lease.port;
    this.host = lease.host;
    this.#id = lease.id;
    // A changed number would no longer be that of the lease.
    Object.freeze(this);
  }

  /** @internal */
  static of(lease: Lease | undefined): FreePort {
    if (lease === undefined) {
      throw new PortlockError('ERR_PORTLOCK', 'the native part has returned no lease');
    }
    return new FreePort(lease);
  }

  /**
   * Returns the descriptor of the socket that listens on the port.
   * @internal
   */
  takeListener(): number {
    const fd = binding.takeListener(this.#id);
    if (fd === null) {
      throw new PortlockError('ERR_PORTLOCK', 'the native part has returned no listener');
    }
    return fd;
  }

  /** Whether the lease has been released or delegated. */
  get released(): boolean {
    return this.#released;
  }

  /**
   * Returns the URL of a server on this port, such as `http://127.0.0.1:4000/`. A path without a
   * leading slash gets one.
   */
  url(scheme = 'http', path = '/'): string {
    if (!/^[a-z][a-z0-9+.-]*$/i.test(checkString('scheme', scheme))) {
      throw invalidValue('scheme', "a URL scheme such as 'http'", scheme);
    }
    const host = isIPv6(this.host) ? `[${this.host}]` : this.host;
    const slash = checkString('path', path).startsWith('/') ? '' : '/';
    return `${scheme}://${host}:${this.port}${slash}${path}`;
  }

  /**
   * Ends the lease. When this returns, any other thread or process can lease the port. Does nothing
   * if the lease has already ended.
   *
   * @throws {PortlockError} `ERR_PORTLOCK_LOCK` if the system refuses to unlock.
   */
  release(): void {
    if (!this.#released) {
      this.#released = true;
      const failure = binding.release(this.#id);
      if (failure) {
        throw PortlockError.from(failure);
      }
    }
  }

  /**
   * Transfers the lease to the process `pid`: it then ends with that process, whatever happens to
   * this one. Returns the port's number.
   *
   * @throws {PortlockError} `ERR_PORTLOCK_PROCESS` if the process does not exist, and
   * `ERR_PORTLOCK_LOCK` if the transfer cannot be recorded. The lease has then ended.
   */
  delegateTo(pid: number): number {
    const target = checkPid(pid);
    this.#released = true;
    const failure = binding.delegateTo(this.#id, target);
    if (failure) {
      throw PortlockError.from(failure);
    }
    return this.port;
  }

  /**
   * Waits until a server of the process `pid`, or of a descendant of it, accepts connections on the
   * port, and returns the server's process. By default `pid` is this process. A server is accepted
   * too if its process cannot be determined.
   *
   * @throws {PortlockError} `ERR_PORTLOCK_OTHER_SERVER` as soon as the server of another process
   * answers, and `ERR_PORTLOCK_TIMEOUT` if no server answers in time.
   * @example
   * const child = spawn('vite', ['--port', `${port}`, '--strictPort']);
   * await port.waitForServer({ pid: child.pid });
   */
  async waitForServer(
    options?: WaitOptions & { pid?: number | undefined },
  ): Promise<ServerProcess> {
    const checked = checkOptions(options, ['pid', ...WAIT_OPTIONS]);
    const pid = checked.pid === undefined ? process.pid : checkPid(checked.pid);
    return (await this.#wait(pid, checked)) as ServerProcess;
  }

  /**
   * Waits until any server accepts connections on the port.
   *
   * @throws {PortlockError} `ERR_PORTLOCK_TIMEOUT` if no server answers in time.
   */
  async waitUntilListening(options?: WaitOptions): Promise<void> {
    await this.#wait(undefined, checkOptions(options, WAIT_OPTIONS));
  }

  async #wait(pid: number | undefined, options: WaitOptions): Promise<ServerProcess | undefined> {
    const timeout = options.timeout === undefined ? DEFAULT_TIMEOUT : checkTimeout(options.timeout);
    const { server, failure } = await run(
      (callback, keepsAlive) => binding.waitForServer(this.#id, pid, timeout, callback, keepsAlive),
      options,
    );
    if (failure) {
      throw PortlockError.from(failure);
    }
    return server;
  }

  /** Releases the port, at the end of a `using` scope. */
  [Symbol.dispose](): void {
    this.release();
  }

  /** Releases the port, at the end of an `await using` scope. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.release();
  }

  valueOf(): number {
    return this.port;
  }

  toString(): string {
    return `${this.port}`;
  }

  toJSON(): number {
    return this.port;
  }

  [inspect.custom](): string {
    return `FreePort { ${this.port}${this.#released ? ', released' : ''} }`;
  }
}

/** Several leased ports, in the requested order. They can be released together. */
export class FreePorts extends Array<FreePort> implements Disposable, AsyncDisposable {
  /** So that `map` and `filter` return plain arrays. */
  static override get [Symbol.species](): ArrayConstructor {
    return Array;
  }

  /**
   * Ends all leases.
   *
   * @throws The first error, after trying to release all.
   */
  release(): void {
    const errors: unknown[] = [];
    for (const port of this) {
      try {
        port.release();
      } catch (error) {
        errors.push(error);
      }
    }
    if (errors.length > 0) {
      throw errors[0];
    }
  }

  [Symbol.dispose](): void {
    this.release();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.release();
  }
}
