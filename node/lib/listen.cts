import cluster from 'node:cluster';
import { once } from 'node:events';
import { closeSync, fstatSync } from 'node:fs';
import { createServer, type ListenOptions as NetListenOptions, type Server } from 'node:net';

import { acquire, leasesOf } from './call.cjs';
import { invalidType, invalidValue } from './errors.cjs';
import { FreePort } from './free-port.cjs';
import {
  ALL_OPTIONS,
  checkOptions,
  toRequest,
  type AsyncOptions,
  type LeaseOptions,
} from './options.cjs';

/** Options of {@link listen}. */
export interface ListenOptions<S extends Server = Server> extends LeaseOptions, AsyncOptions {
  /** One IP address to listen on; by default every address of this machine. */
  host?: string | undefined;
  /** Only TCP has servers. */
  protocol?: 'tcp' | undefined;
  /** Server to start, such as one of `http.createServer()`; by default `net.createServer()`. */
  server?: S | undefined;
}

/** A server that listens, and the lease of its port. */
export class Listening<S extends Server = Server> implements AsyncDisposable {
  readonly port: FreePort;
  readonly server: S;

  /** @internal */
  constructor(port: FreePort, server: S) {
    this.port = port;
    this.server = server;
  }

  /** Closes the server, waits until its connections have ended, and releases the port. */
  async close(): Promise<void> {
    const { server } = this;
    // A server that was already closed still has the connections that have not ended.
    if (server.listening || (await countConnections(server)) > 0) {
      await new Promise<void>((resolve) => server.close(() => resolve()));
    }
    this.port.release();
  }

  /** Closes the server and releases the port, at the end of an `await using` scope. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

function countConnections(server: Server): Promise<number> {
  return new Promise((resolve, reject) => {
    server.getConnections((error, count) => (error ? reject(error) : resolve(count)));
  });
}

/** Number of ports that a server that binds by number tries before its error is final. */
const ATTEMPTS = 10;

/**
 * Leases a free port and listens on it without a gap: the socket that found the port free becomes
 * the server's. Closing the server does not end the lease, so the next server can use the port.
 *
 * On Windows, and in a worker of `cluster`, whose primary process binds ports for it, the server
 * binds the leased port. If another program takes the port in between, another port is leased.
 *
 * @example
 * await using listening = await listen({ server: http.createServer(app) });
 * await fetch(listening.port.url());
 */
export async function listen<S extends Server = Server>(
  options?: ListenOptions<S>,
): Promise<Listening<S>> {
  const checked = checkOptions(options, [...ALL_OPTIONS, 'server']);
  const { host, protocol, server = createServer() as S } = checked;
  if (host !== undefined && typeof host !== 'string') {
    throw invalidType('host', 'one IP address', host);
  }
  if (protocol !== undefined && protocol !== 'tcp') {
    throw invalidValue('protocol', "'tcp'", protocol);
  }
  if (typeof server?.listen !== 'function') {
    throw invalidType('server', 'a net.Server', server);
  }
  if (server.listening) {
    throw invalidValue('server', 'a server that does not listen yet', server);
  }
  const handsOver = process.platform !== 'win32' && !cluster.isWorker;
  const port = await (handsOver ? takeOver(server, checked) : bind(server, checked));
  return new Listening(port, server);
}

/** Starts the server on the socket that found the port free. */
async function takeOver(server: Server, options: ListenOptions): Promise<FreePort> {
  const outcome = await acquire(toRequest(options, { listen: true }), options);
  const [lease] = leasesOf(outcome);
  const port = FreePort.of(lease);
  const fd = port.takeListener();
  const { ino } = fstatSync(fd);
  try {
    await start(server, { fd });
  } catch (error) {
    closeIfOpen(fd, ino);
    port.release();
    throw error;
  }
  return port;
}

/** Closes a socket, unless the server that failed has taken it over and closed it. */
function closeIfOpen(fd: number, ino: number): void {
  try {
    if (fstatSync(fd).ino === ino) {
      closeSync(fd);
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EBADF') {
      throw error;
    }
  }
}

/** Starts the server on the leased port by its number. */
async function bind(server: Server, options: ListenOptions): Promise<FreePort> {
  const taken: FreePort[] = [];
  try {
    for (;;) {
      const [lease] = leasesOf(await acquire(toRequest(options), options));
      const port = FreePort.of(lease);
      try {
        await start(server, { port: port.port, host: options.host, exclusive: true });
        return port;
      } catch (error) {
        // Kept until the end, so that the next attempt leases another port.
        taken.push(port);
        const { code } = error as NodeJS.ErrnoException;
        if (code !== 'EADDRINUSE' || taken.length === ATTEMPTS) {
          throw error;
        }
      }
    }
  } finally {
    taken.forEach((port) => port.release());
  }
}

async function start(server: Server, options: NetListenOptions & { fd?: number }): Promise<void> {
  // Rejects if the server emits 'error' instead.
  const listening = once(server, 'listening');
  server.listen(options);
  await listening;
}
