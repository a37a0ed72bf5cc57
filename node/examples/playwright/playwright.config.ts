import { defineConfig } from '@playwright/test';
import * as portlock from 'portlock/playwright';

// Every worker loads this file, and gets the same port.
const { webServer, baseURL } = portlock.webServer({
  command: 'node server.js --port {port}',
});

export default defineConfig({
  testDir: 'tests',
  fullyParallel: true,
  workers: 2,
  reporter: 'line',
  webServer,
  use: { baseURL },
});
