import { portSetup } from 'portlock/vitest';

declare module 'vitest' {
  interface ProvidedContext {
    ports: { web: number };
  }
}

// One port for the whole run. Tests get its number by `inject`.
export default portSetup({ web: {} });
