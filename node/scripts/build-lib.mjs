// Compiles lib/ into dist/.

import { spawnSync } from 'node:child_process';
import { chmodSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const typescript = createRequire(import.meta.url).resolve('typescript/package.json');
// Including what was compiled from files that no longer exist.
rmSync(join(root, 'dist'), { recursive: true, force: true });
const tsc = join(dirname(typescript), 'bin', 'tsc');
const { status } = spawnSync(process.execPath, [tsc], { cwd: root, stdio: 'inherit' });
if (status !== 0) process.exit(1);
// For `npx portlock` in this folder. For an installed package, npm does this.
chmodSync(join(root, 'dist/bin.cjs'), 0o755);
