/** Helpers for Playwright. They import nothing from it, and so work with any of its versions. */

import type { FreePort } from './free-port.cjs';
import { leaseSync } from './lease.cjs';
import type { LeaseOptions } from './options.cjs';

export { portFixture, type PortFixture } from './fixture.cjs';

/** A `webServer` of Playwright's configuration, and how to lease its port. */
export interface WebServerOptions {
  /** Command that starts the server. `{port}` in it is replaced, and `PORT` is set. */
  readonly command: string;
  /** Path that answers once the server is ready; by default `/`. */
  readonly path?: string | undefined;
  /** Environment variables of the server, besides Playwright's own. */
  readonly env?: Readonly<Record<string, string>> | undefined;
  /** How the port is leased. */
  readonly lease?: LeaseOptions | undefined;
}

export interface WebServer<Rest> {
  /** The port's number, the same in every process of the run. */
  readonly port: number;
  /** Such as `http://localhost:4000`, for `use`. */
  readonly baseURL: string;
  /** For the configuration. */
  readonly webServer: Rest & {
    readonly command: string;
    readonly url: string;
    readonly env: Record<string, string>;
    readonly reuseExistingServer: boolean;
  };
}

/** The variable that passes the leased ports from the main process to its workers. */
const VARIABLE = 'PORTLOCK_PLAYWRIGHT';

interface Ports {
  readonly pid: number;
  readonly ports: Record<string, number>;
}

const leases: FreePort[] = [];

/**
 * Leases a port for the web server of a run, and returns the server's part of the configuration.
 *
 * Playwright loads the configuration in its main process and in every worker. The main process
 * leases the port until it ends, and the workers get the same port.
 *
 * @example
 * const { webServer, baseURL } = portlock.webServer({ command: 'vite --port {port} --strictPort' });
 * export default defineConfig({ webServer, use: { baseURL } });
 */
export function webServer<Rest extends object = object>(
  options: WebServerOptions & Rest,
): WebServer<Omit<Rest, keyof WebServerOptions>> {
  const { command, path = '/', env = {}, lease = {}, ...rest } = options;
  const port = portOf(command, lease);
  const baseURL = `http://localhost:${port}`;
  return {
    port,
    baseURL,
    webServer: {
      reuseExistingServer: false,
      ...rest,
      command: command.replaceAll('{port}', `${port}`),
      url: new URL(path, baseURL).href,
      env: { ...env, PORT: `${port}` },
    },
  };
}

function portOf(command: string, options: LeaseOptions): number {
  const ports = portsOfRun();
  const known = ports[command];
  if (known !== undefined) {
    return known;
  }
  const port = leaseSync({ label: command, ...options });
  leases.push(port);
  const value: Ports = { pid: process.pid, ports: { ...ports, [command]: port.port } };
  process.env[VARIABLE] = JSON.stringify(value);
  return port.port;
}

/** Returns the ports that this process or the one that started it has leased. */
function portsOfRun(): Ports['ports'] {
  const value = process.env[VARIABLE];
  if (value === undefined) {
    return {};
  }
  const { pid, ports } = JSON.parse(value) as Ports;
  // A run that is started by a test inherits the variable too.
  return pid === process.pid || pid === process.ppid ? ports : {};
}
