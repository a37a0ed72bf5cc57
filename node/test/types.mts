// What the types permit. Compiled by `npm run lint`, and never run.

import http from 'node:http';

import getPort, { clearLockedPorts, portNumbers, type Options } from 'portlock/get-port';
import * as playwright from 'portlock/playwright';
import {
  FreePort,
  lease,
  leaseBlock,
  leaseMany,
  leaseOffsets,
  leaseSync,
  listen,
  PortlockError,
  PortSet,
  type LeaseOptions,
  type PortCounts,
  type ServerProcess,
} from 'portlock';

export async function uses(signal: AbortSignal): Promise<void> {
  await using port: FreePort = await lease({ ports: '4000-6000', signal, ref: false });
  using other = leaseSync({ ports: new PortSet([4000, 4001]), host: ['127.0.0.1', '::1'] });
  const number: number = port.port + Number(other);
  const url: URL = new URL(port.url('ws'));
  using many = await leaseMany(3, { name: undefined });
  const [first] = await leaseBlock(2);
  const undefinable: FreePort | undefined = first;
  await leaseOffsets(new Set([0, 10_000]));
  const { server, port: leased } = await listen({ server: http.createServer() });
  server.closeAllConnections();
  const process: ServerProcess = await leased.waitForServer({ pid: 1, timeout: 10, signal });
  const delegated: number = leased.delegateTo(1);
  const options: LeaseOptions = { protocol: 'tcp+udp', name: 'web', root: '.', orAny: true };
  const picked: number = await getPort({ port: portNumbers(3000, 3100), reserve: true });
  const compatible: Options = { exclude: [1], host: 'localhost' };
  clearLockedPorts();
  const { webServer } = playwright.webServer({ command: 'x', timeout: 10 });
  const timeout: number = webServer.timeout;
  void [number, url, many, undefinable, process, delegated, options, picked, compatible, timeout];
}

export function wrong(error: unknown): PortCounts | undefined {
  // @ts-expect-error: the option is `ports`
  void lease({ port: 4000 });
  // @ts-expect-error: no such protocol
  void lease({ protocol: 'sctp' });
  // @ts-expect-error: a synchronous call cannot be aborted
  leaseSync({ signal: AbortSignal.abort() });
  // @ts-expect-error: only portlock makes them
  new FreePort();
  // @ts-expect-error: it is read-only
  leaseSync().port = 1;
  if (error instanceof PortlockError && error.code === 'ERR_PORTLOCK_EXHAUSTED') {
    return error.counts;
  }
  return undefined;
}
