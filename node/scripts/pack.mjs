// Packs the package, and a package with binaries for each available platform.
//
//     node scripts/pack.mjs [FOLDER]
//
// FOLDER has a folder for each platform, such as linux-x64-gnu, with the files that
// `build-native.mjs` puts into native/. Without it, only this machine's platform is packed. The
// tarballs are in packages/.

import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
const { version, license } = manifest;

/** The fields of package.json by which npm installs only the package for its system. */
export const PLATFORMS = {
  'linux-x64-gnu': { os: ['linux'], cpu: ['x64'], libc: ['glibc'] },
  'linux-arm64-gnu': { os: ['linux'], cpu: ['arm64'], libc: ['glibc'] },
  'linux-x64-musl': { os: ['linux'], cpu: ['x64'], libc: ['musl'] },
  'darwin-arm64': { os: ['darwin'], cpu: ['arm64'] },
  'darwin-x64': { os: ['darwin'], cpu: ['x64'] },
  'win32-x64': { os: ['win32'], cpu: ['x64'] },
};

const folder = process.argv[2];
const packages = join(root, 'packages');
rmSync(packages, { recursive: true, force: true });

const { platform: here } = createRequire(import.meta.url)(join(root, 'dist/native.cjs'));
for (const platform of Object.keys(PLATFORMS)) {
  const binaries = folder ? join(folder, platform) : join(root, 'native');
  if (folder ? existsSync(binaries) : platform === here()) {
    packPlatform(platform, binaries);
  }
}
packMain();

function packPlatform(platform, binaries) {
  const windows = platform.startsWith('win32');
  const files = ['portlock.node', windows ? 'portlock.exe' : 'portlock'];
  const into = stage(platform, {
    name: `@portlock/${platform}`,
    version,
    description: `portlock for ${platform}`,
    license,
    ...PLATFORMS[platform],
    engines: manifest.engines,
    files: [...files, 'LICENSE-*'],
  });
  for (const file of files) {
    cpSync(join(binaries, file), join(into, file));
    // Files that are downloaded in CI have lost their mode.
    chmodSync(join(into, file), 0o755);
  }
  pack(into);
}

function packMain() {
  const names = Object.keys(PLATFORMS).map((platform) => [`@portlock/${platform}`, version]);
  const published = { ...manifest, optionalDependencies: Object.fromEntries(names) };
  // The platforms' packages have the binaries; `npm pack` in this folder packs this machine's.
  published.files = manifest.files.filter((name) => name !== 'native');
  // Only this repository needs these.
  delete published.workspaces;
  delete published.scripts;
  delete published.devDependencies;
  const into = stage('portlock', published);
  cpSync(join(root, 'dist'), join(into, 'dist'), { recursive: true });
  cpSync(join(root, 'README.md'), join(into, 'README.md'));
  pack(into);
}

/** Creates a folder with a manifest and the licenses. */
function stage(name, contents) {
  const into = join(packages, name);
  mkdirSync(into, { recursive: true });
  writeFileSync(join(into, 'package.json'), `${JSON.stringify(contents, null, 2)}\n`);
  for (const license of ['LICENSE-APACHE', 'LICENSE-MIT']) {
    cpSync(join(root, '..', license), join(into, license));
  }
  return into;
}

function pack(into) {
  const args = ['pack', '--pack-destination', packages, into];
  const { status } = spawnSync('npm', args, {
    stdio: 'inherit',
    shell: process.platform === 'win32',
  });
  if (status !== 0) process.exit(1);
}
