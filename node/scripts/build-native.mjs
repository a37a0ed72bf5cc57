// Builds the native part and the program from this repository into native/.
//
//     node scripts/build-native.mjs [--debug] [--target TRIPLE]

import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, renameSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const node = dirname(dirname(fileURLToPath(import.meta.url)));
const { values } = parseArgs({
  options: { debug: { type: 'boolean', default: false }, target: { type: 'string' } },
});

const system = values.target ?? { darwin: 'apple', win32: 'windows' }[process.platform] ?? 'linux';
const windows = system.includes('windows');
const library = windows
  ? 'portlock_node.dll'
  : `libportlock_node.${system.includes('apple') ? 'dylib' : 'so'}`;
const program = windows ? 'portlock.exe' : 'portlock';

/** Builds a package of the workspace at `root`, and returns the folder with the result. */
function build(root, name) {
  const args = [
    'build',
    '--locked',
    '--manifest-path',
    join(root, 'Cargo.toml'),
    '--package',
    name,
  ];
  if (!values.debug) args.push('--release');
  if (values.target) args.push('--target', values.target);
  const { status, error } = spawnSync('cargo', args, { stdio: 'inherit' });
  if (error) {
    console.error(`cannot run cargo: ${error.message} (install Rust: https://rustup.rs)`);
  }
  if (status !== 0) process.exit(status ?? 1);
  const folder = process.env.CARGO_TARGET_DIR ?? join(root, 'target');
  return join(folder, values.target ?? '', values.debug ? 'debug' : 'release');
}

const native = join(node, 'native');
mkdirSync(native, { recursive: true });
install(join(build(join(node, 'addon'), 'portlock-node'), library), 'portlock.node');
install(join(build(dirname(node), 'portlock-cli'), program), program);

/** Replaces a file atomically: writing to it while a process uses it would crash that process. */
function install(from, to) {
  const copy = join(native, `${to}.new`);
  copyFileSync(from, copy);
  renameSync(copy, join(native, to));
}
