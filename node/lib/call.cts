import { binding, type Call, type Outcome, type Request } from './binding.cjs';
import { PortlockError } from './errors.cjs';
import { checkBoolean, checkSignal, type AsyncOptions } from './options.cjs';

/** Maximum milliseconds of a synchronous wait in native code, where it cannot be terminated. */
const SLICE = 100;

/**
 * The waits of each signal. They share one listener, because Node.js warns of more than ten.
 */
const waits = new WeakMap<AbortSignal, { stops: Set<() => void>; listener: () => void }>();

/** Calls `stop` when the signal is aborted. The returned function cancels that. */
function onAbort(signal: AbortSignal, stop: () => void): () => void {
  let wait = waits.get(signal);
  if (wait === undefined) {
    const stops = new Set<() => void>();
    wait = { stops, listener: () => stops.forEach((stop) => stop()) };
    waits.set(signal, wait);
    signal.addEventListener('abort', wait.listener);
  }
  const { stops, listener } = wait;
  stops.add(stop);
  return () => {
    stops.delete(stop);
    if (stops.size === 0) {
      waits.delete(signal);
      signal.removeEventListener('abort', listener);
    }
  };
}

/** Throws the signal's reason if it is aborted. */
function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) {
    throw signal.reason;
  }
}

type Start = (callback: (outcome: Outcome) => void, keepsAlive: boolean) => Call;

/** Runs a native call to its end, or until it is aborted. */
export async function run(start: Start, options: AsyncOptions): Promise<Outcome> {
  const signal = checkSignal(options.signal);
  const keepsAlive = options.ref === undefined || checkBoolean('ref', options.ref);
  throwIfAborted(signal);
  let call: Call | undefined;
  const forget = signal && onAbort(signal, () => call?.stop());
  let outcome: Outcome;
  try {
    outcome = await new Promise((resolve) => {
      call = started(() => start(resolve, keepsAlive));
    });
  } finally {
    forget?.();
  }
  if (signal?.aborted) {
    // The call may have succeeded at the same time.
    for (const { id } of outcome.leases ?? []) {
      binding.release(id);
    }
    throwIfAborted(signal);
  }
  return outcome;
}

/** Starts a native call. Its arguments are checked, so it fails only if the system has no thread. */
function started(start: () => Call): Call {
  try {
    return start();
  } catch (cause) {
    throw new PortlockError('ERR_PORTLOCK', (cause as Error).message, { cause });
  }
}

/** Leases ports, and waits without blocking the event loop. */
export async function acquire(request: Request, options: AsyncOptions): Promise<Outcome> {
  return run((callback, keepsAlive) => binding.acquire(request, callback, keepsAlive), options);
}

/** Leases ports, and blocks this thread while it waits. */
export function acquireSync(request: Request): Outcome {
  // Usually a port is free. A wait needs a thread, which costs five times as much as the lease.
  const outcome = binding.acquireNow(request);
  if (outcome !== null) {
    return outcome;
  }
  const call = started(() => binding.acquire(request, undefined, false));
  for (;;) {
    const outcome = call.wait(SLICE);
    if (outcome !== null) {
      return outcome;
    }
  }
}

/** Returns the leases of a call that has succeeded. */
export function leasesOf(outcome: Outcome): NonNullable<Outcome['leases']> {
  if (outcome.failure) {
    throw PortlockError.from(outcome.failure);
  }
  return outcome.leases ?? [];
}
