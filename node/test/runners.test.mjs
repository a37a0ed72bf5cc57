import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';

import { root, run, scene } from './support.mjs';

// The examples, each run twice at the same time with no more ports than both need.
const RUNNERS = {
  vitest: { command: ['vitest/vitest.mjs', 'run'], ports: 16, passed: /Tests\s+7 passed/ },
  jest: { command: ['jest/bin/jest.js'], ports: 16, passed: /Tests:\s+9 passed/ },
  playwright: { command: ['@playwright/test/cli.js', 'test'], ports: 16, passed: /8 passed/ },
};

for (const [name, { command, ports, passed }] of Object.entries(RUNNERS)) {
  const [script, ...args] = command;
  const path = join(root, 'node_modules', script);
  const skip = !existsSync(path) && `${name} is not installed`;
  test(`two suites of ${name} share ${ports} ports`, { skip }, async (t) => {
    const place = await scene(t, ports);
    const env = { ...process.env, PORTLOCK_DIR: place.lockDir, PORTLOCK_PORTS: `${place.ports}` };
    // The variables of this test runner, and of colors.
    for (const variable of ['NODE_TEST_CONTEXT', 'FORCE_COLOR']) {
      delete env[variable];
    }
    env.NO_COLOR = '1';
    const options = { cwd: join(root, 'examples', name), env };
    const suites = [1, 2].map((i) => {
      // Each clears its output folder.
      const output =
        name === 'playwright' ? [`--output=${join(place.lockDir, `output-${i}`)}`] : [];
      return run(process.execPath, [path, ...args, ...output], options);
    });
    for (const { status, output } of await Promise.all(suites)) {
      assert.equal(status, 0, output);
      assert.match(output, passed);
      if (name === 'playwright') {
        const lines = [...output.matchAll(/^(\d+) (http:\S+) (\d+)$/gm)];
        assert.equal(lines.length, 6, output);
        const [workers, urls, servers] = [1, 2, 3].map(
          (i) => new Set(lines.map((line) => line[i])),
        );
        assert.deepEqual([workers.size, urls.size, servers.size], [2, 1, 1], output);
      }
    }
  });
}
