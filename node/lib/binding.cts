/** The functions of the native part, as `addon/` declares them. */

import type { PortCounts, PortHolder } from './errors.cjs';
import { addon } from './native.cjs';

export interface Failure {
  code: string;
  message: string;
  errno?: number;
  path?: string;
  counts?: PortCounts;
  holders?: PortHolder[];
  server?: ServerProcess;
}

/** A process that answers on a port. */
export interface ServerProcess {
  /** Its pid; missing if it cannot be seen. */
  readonly pid?: number;
  /** The file name of its program. */
  readonly program?: string;
  /** Whether it was determined that the server belongs to the expected process. */
  readonly isKnown: boolean;
}

export interface Lease {
  id: number;
  port: number;
  host: string;
}

export interface Outcome {
  leases?: Lease[];
  server?: ServerProcess;
  failure?: Failure;
}

/** Ports in the form `[first, last, first, last, …]`, ascending. */
export type Spans = number[];

export interface Request {
  ports?: string;
  hosts: string[];
  protocol?: string;
  timeout?: number;
  label?: string;
  prefer?: string;
  name?: string;
  root?: string;
  orAny?: boolean;
  first?: number[];
  reuseAddress?: boolean;
  holdSocket?: boolean;
  lockDir?: string;
  shape: { many?: number; block?: number; offsets?: number[]; listen?: boolean };
}

export interface Call {
  stop(): void;
  wait(ms: number): Outcome | null;
}

type Callback = (outcome: Outcome) => void;

interface Binding {
  acquireNow(request: Request): Outcome | null;
  acquire(request: Request, callback: Callback | undefined, keepsAlive: boolean): Call;
  waitForServer(
    id: number,
    pid: number | undefined,
    timeout: number,
    callback: Callback,
    keepsAlive: boolean,
  ): Call;
  release(id: number): Failure | null;
  takeListener(id: number): number | null;
  delegateTo(id: number, pid: number): Failure | null;
  parsePorts(text: string): Spans | Failure;
  serverPorts(): Spans | Failure;
  ephemeralPorts(): Spans | Failure;
  exec(program: string, args: string[]): string | null;
}

export const binding = addon() as Binding;
