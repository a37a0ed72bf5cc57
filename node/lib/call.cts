import { binding, type Call, type Outcome, type Request } from './binding.cjs';
import { PortlockError } from './errors.cjs';
import { checkBoolean, checkSignal, type AsyncOptions } from './options.cjs';

/** Milliseconds for which a synchronous wait stays in native code, where it cannot be terminated. */
const SLICE = 100;

type Start = (callback: (outcome: Outcome) => void, keepsAlive: boolean) => Call;

/** Runs a native call to its end, or until it is aborted. */
export async function run(start: Start, options: AsyncOptions): Promise<Outcome> {
  const signal = checkSignal(options.signal);
  const keepsAlive = options.ref === undefined || checkBoolean('ref', options.ref);
  signal?.throwIfAborted();
  const outcome = await new Promise<Outcome>((resolve) => {
    const call = start(finish, keepsAlive);
    const stop = () => call.stop();
    signal?.addEventListener('abort', stop, { once: true });
    function finish(outcome: Outcome): void {
      signal?.removeEventListener('abort', stop);
      resolve(outcome);
    }
  });
  if (signal?.aborted) {
    // It may have succeeded at the same time.
    for (const { id } of outcome.leases ?? []) {
      binding.release(id);
    }
    signal.throwIfAborted();
  }
  return outcome;
}

/** Leases, and waits without blocking the event loop. */
export async function acquire(request: Request, options: AsyncOptions): Promise<Outcome> {
  return run((callback, keepsAlive) => binding.acquire(request, callback, keepsAlive), options);
}

/** Leases, and blocks this thread while it waits. */
export function acquireSync(request: Request): Outcome {
  const call = binding.acquire(request, undefined, false);
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
