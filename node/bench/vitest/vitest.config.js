import { defineConfig } from 'vitest/config';

// 8 workers, each with one file of 25 tests.
export default defineConfig({
  test: { maxWorkers: 8, minWorkers: 8, testTimeout: 60_000, reporters: ['dot'] },
});
