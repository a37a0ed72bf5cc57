import assert from 'node:assert/strict';
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { before, after, test } from 'node:test';

import { root, run } from './support.mjs';

const shell = process.platform === 'win32';
let tarballs;
let project;

before(async () => {
  const packed = await run(process.execPath, ['scripts/pack.mjs']);
  assert.equal(packed.status, 0, packed.output);
  const names = await readdir(join(root, 'packages'));
  tarballs = names.filter((name) => name.endsWith('.tgz')).sort();
  project = await mkdtemp(join(tmpdir(), 'portlock-project-'));
  await writeFile(join(project, 'package.json'), '{ "private": true }');
});

after(() => rm(project, { recursive: true }));

/** Installs tarballs into the project, without a registry. */
async function install(...names) {
  await rm(join(project, 'node_modules'), { recursive: true, force: true });
  const paths = names.map((name) => resolve(root, 'packages', name));
  const args = ['install', '--offline', '--no-save', '--no-audit', ...paths];
  const outcome = await run('npm', args, { cwd: project, shell });
  assert.equal(outcome.status, 0, outcome.output);
}

const script = (code) => run(process.execPath, ['--eval', code], { cwd: project });

test('the packages have what they need, and no more', async () => {
  const contents = async (tarball) => {
    const { output } = await run('tar', ['tzf', join(root, 'packages', tarball)]);
    return output.trim().split('\n').sort();
  };
  const main = tarballs.find((name) => /^portlock-\d/.test(name));
  const files = await contents(main);
  const modules = ['get-port', 'index', 'jest', 'playwright', 'vitest'];
  for (const module of modules) {
    for (const ext of ['cjs', 'd.cts', 'mjs', 'd.mts']) {
      assert.ok(files.includes(`package/dist/${module}.${ext}`), `${module}.${ext}`);
    }
  }
  const others = files.filter((file) => !file.startsWith('package/dist/'));
  assert.deepEqual(others, [
    'package/LICENSE-APACHE',
    'package/LICENSE-MIT',
    'package/README.md',
    'package/package.json',
  ]);
  assert.deepEqual(
    files.filter((file) => !/\/dist\/[\w-]+(\.d)?\.[cm][jt]s$/.test(file)),
    others,
  );
  const platform = await contents(tarballs.find((name) => name !== main));
  const binaries = platform.filter((file) => !/LICENSE|package\.json/.test(file));
  assert.match(`${binaries}`, /^package\/portlock(\.exe)?,package\/portlock\.node$/);
});

test('the packages install without a compiler, and run', async () => {
  await install(...tarballs);
  const esm = `import('portlock').then(async ({ lease }) => console.log((await lease()).port))`;
  assert.match((await script(esm)).output, /^\d+\n$/);
  const cjs = `const { leaseSync } = require('portlock'); console.log(leaseSync().port)`;
  assert.match((await script(cjs)).output, /^\d+\n$/);
  const shown = await run('npx', ['--no', '--', 'portlock', '--version'], { cwd: project, shell });
  assert.match(shown.output, /^portlock \d/);
});

test('the package that npm packs here runs without another package', async () => {
  const packed = await run('npm', ['pack', '--pack-destination', project], { shell });
  assert.equal(packed.status, 0, packed.output);
  const name = (await readdir(project)).find((name) => name.endsWith('.tgz'));
  await install(join(project, name));
  const { output } = await script(`console.log(require('portlock').leaseSync().port)`);
  assert.match(output, /^\d+\n$/);
});

test('without the package of the platform, an error says so', async () => {
  await install(tarballs.find((name) => /^portlock-\d/.test(name)));
  const { output, status } = await script(`require('portlock')`);
  assert.equal(status, 1);
  assert.match(output, /ERR_PORTLOCK_NO_BINARY/);
  assert.match(output, /portlock has no native part for \S+: the package @portlock\/\S+ is not/);
  const shown = await run('npx', ['--no', '--', 'portlock', 'dir'], { cwd: project, shell });
  assert.match(shown.output, /^portlock: portlock has no native part for [^\n]*\n$/);
  assert.equal(shown.status, 125);
});
