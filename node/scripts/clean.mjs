// Removes what tsc has compiled, also from files that are there no longer.

import { rmSync } from 'node:fs';

rmSync(new URL('../dist', import.meta.url), { recursive: true, force: true });
