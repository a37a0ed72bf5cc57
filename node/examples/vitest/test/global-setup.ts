import { portSetup } from 'portlock/vitest';

declare module 'vitest' {
  interface ProvidedContext {
    ports: { web: number };
  }
}

// One port for all of the run, whose number the tests get by `inject`.
export default portSetup({ web: {} });
