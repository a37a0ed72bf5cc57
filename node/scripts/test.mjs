// Runs the tests. The test runner of Node.js 20 does not accept patterns for files.
//
//     node scripts/test.mjs [OPTION…]

import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const files = readdirSync(join(root, 'test'))
  .filter((name) => name.endsWith('.test.mjs'))
  .map((name) => join('test', name));
// A server that a failed test leaves behind must not keep the run alive.
const args = ['--test', '--test-force-exit', '--test-timeout=240000'];
const { status } = spawnSync(process.execPath, [...args, ...process.argv.slice(2), ...files], {
  cwd: root,
  stdio: 'inherit',
});
process.exitCode = status ?? 1;
