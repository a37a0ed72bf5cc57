// The examples in JavaScript and TypeScript on the pages.

import assert from 'node:assert/strict';
import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join, relative } from 'node:path';
import { test } from 'node:test';

import { root, run, scene } from './support.mjs';

const repository = dirname(root);
const docs = (await readdir(join(repository, 'docs'), { recursive: true }))
  .filter((path) => path.endsWith('.md'))
  .map((path) => join(repository, 'docs', path));
const examples = [];
for (const page of [join(repository, 'README.md'), join(root, 'README.md'), ...docs.sort()]) {
  const blocks = (await readFile(page, 'utf8')).matchAll(/^```([jt])s\n(.*?)^```$/gms);
  for (const [i, [, type, code]] of [...blocks].entries()) {
    examples.push({ name: `${relative(repository, page)}, ${i + 1}`, type, code });
  }
}
// The examples that need neither a test runner, Vite, nor a compiler.
const runnable = examples.filter(
  ({ type, code }) => type === 'j' && /^import .* 'portlock/m.test(code) && !/vite/.test(code),
);

test('the pages have examples', () => {
  assert.ok(examples.length >= 11 && runnable.length >= 6, `${examples.length}`);
});

for (const { name, code } of runnable) {
  test(`the example of ${name} runs`, async (t) => {
    const { lockDir } = await scene(t);
    const env = { ...process.env, PORTLOCK_DIR: lockDir };
    const args = ['--input-type=module', '--eval', code];
    const { status, output } = await run(process.execPath, args, { env });
    assert.equal(status, 0, output);
    // The output that the comments show, except for numbers.
    const lines = [...code.matchAll(/(?:console\.log\(.*; |^ *)\/\/ (ERR_|\d.*)/gm)];
    for (const [, said] of lines) {
      const pattern = said.replace(/[.*+?^${}()|[\]\\]/g, '\\$&').replace(/\d+/g, '\\d+');
      assert.match(output, new RegExp(pattern), output);
    }
  });
}

test('each example compiles', async (t) => {
  const tsc = createRequire(import.meta.url).resolve('typescript/package.json');
  // Here, so that it finds the packages of the test runners.
  const folder = await mkdtemp(join(root, 'test', 'examples-'));
  t.after(() => rm(folder, { recursive: true }));
  for (const { name, type, code } of examples) {
    const kind = /\brequire\(/.test(code) ? 'c' : 'm';
    const header = /\b(import|require)\b/.test(code) ? '' : `import { lease } from 'portlock';\n`;
    const file = `${name.replace(/\W+/g, '-')}.${kind}${type}s`;
    await writeFile(join(folder, file), header + code);
  }
  // Jest has it in each test file.
  const globals = 'declare const test: (name: string, run: () => unknown) => void;';
  await writeFile(join(folder, 'globals.d.ts'), globals);
  const compilerOptions = {
    rootDir: '../..',
    allowJs: true,
    checkJs: true,
    noUnusedLocals: false,
    noUnusedParameters: false,
    useUnknownInCatchVariables: false,
  };
  const config = { extends: '../../tsconfig.test.json', compilerOptions, include: ['.'] };
  await writeFile(join(folder, 'tsconfig.json'), JSON.stringify(config));
  const args = [join(dirname(tsc), 'bin', 'tsc'), '--project', folder];
  const { status, output } = await run(process.execPath, args);
  assert.equal(status, 0, output);
});
