import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';

import { root, run, scene } from './support.mjs';

const text = await readFile(join(root, 'README.md'), 'utf8');
const blocks = [...text.matchAll(/^```js\n(.*?)^```$/gms)].map(([, code]) => code);
// The blocks that need neither a test runner nor Vite.
const modules = blocks.filter(
  (code) => /^import .* 'portlock';$/m.test(code) && !/vite/.test(code),
);

test('the README has examples', () => {
  assert.equal(modules.length, 3);
});

for (const [i, code] of modules.entries()) {
  test(`example ${i + 1} of the README runs`, async (t) => {
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
