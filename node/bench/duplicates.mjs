// Counts the ports that several processes pick more than once, if each keeps all of its ports.
//
//     node duplicates.mjs [PROCESSES [PORTS]]

import { fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';

import { pickers } from './pickers.mjs';

const here = fileURLToPath(import.meta.url);

if (process.send) {
  const [name, n] = process.argv.slice(2);
  const ports = [];
  process.send('ready');
  await once(process, 'message');
  const start = performance.now();
  for (let i = 0; i < Number(n); i++) {
    ports.push(await pickers[name]());
  }
  process.send({ ports, ms: performance.now() - start });
  // Each process keeps its ports until all have finished.
  await once(process, 'message');
  process.exit();
}

const processes = Number(process.argv[2] ?? 8);
const n = Number(process.argv[3] ?? 200);
console.log(`${processes} processes, ${n} ports each`);
for (const name of Object.keys(pickers)) {
  const children = Array.from({ length: processes }, () => fork(here, [name, `${n}`]));
  await Promise.all(children.map((child) => once(child, 'message')));
  children.forEach((child) => child.send('start'));
  const found = await Promise.all(children.map(async (child) => (await once(child, 'message'))[0]));
  children.forEach((child) => child.send('end'));
  const ports = found.flatMap(({ ports }) => ports);
  const twice = ports.length - new Set(ports).size;
  const us = (found.reduce((sum, { ms }) => sum + ms, 0) / ports.length) * 1000;
  console.log(`${name}: ${twice} of ${ports.length} are duplicates; ${us.toFixed(0)} µs each`);
}
