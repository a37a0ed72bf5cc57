export * from './vitest.cjs';
