// Ways to find a free port. Each is an async function without arguments.

import { detect } from 'detect-port';
import getPort from 'get-port';
import portfinder from 'portfinder';
import { lease } from 'portlock';

export const pickers = {
  portlock: async () => (await lease()).port,
  'get-port': () => getPort({ reserve: true }),
  portfinder: () => portfinder.getPortPromise(),
  'detect-port': () => detect(0),
};
