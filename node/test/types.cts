// As in `types.mts`, for modules of CommonJS.

import portlock = require('portlock');
import getPort = require('portlock/get-port');
import jest = require('portlock/jest');
import vitest = require('portlock/vitest');

export async function uses(): Promise<number> {
  const port: portlock.FreePort = await portlock.lease();
  const setup: () => Promise<void> = jest.portSetup({ API_PORT: { ports: 4000 } });
  void [setup, vitest.portFixture()];
  return port.port + (await getPort.getPort());
}
