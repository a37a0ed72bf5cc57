/** The functions of the native part, as `src/` declares them. */

import { addon } from './native.cjs';

export interface Failure {
  code: string;
  message: string;
  errno?: number;
  counts?: {
    leased: number;
    bound: number;
    lingering: number;
    notPermitted: number;
    notEnough: number;
  };
}

export interface Lease {
  id: number;
  port: number;
  host: string;
  fd?: number;
}

export interface Outcome {
  leases?: Lease[];
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
  acquire(request: Request, callback: Callback | undefined, keepsAlive: boolean): Call;
  release(id: number): Failure | null;
  delegateTo(id: number, pid: number): Failure | null;
  parsePorts(text: string): Spans | Failure;
  serverPorts(): Spans | Failure;
  ephemeralPorts(): Spans | Failure;
  exec(program: string, args: string[]): string | null;
}

export const binding = addon() as Binding;
