import assert from 'node:assert/strict';
import cluster from 'node:cluster';
import { once } from 'node:events';
import http from 'node:http';
import net from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { listen } from 'portlock';

import { isFree, root, scene } from './support.mjs';

test('listen starts a server on the leased port', async (t) => {
  const place = await scene(t);
  const listening = await listen({ ports: place.port, lockDir: place.lockDir });
  const { port, server } = listening;
  assert.equal(port.port, place.port);
  assert.ok(server instanceof net.Server && server.listening);
  assert.equal(server.address().port, place.port);
  server.on('connection', (socket) => socket.end('hello'));
  const socket = net.connect(port.port, port.host).setEncoding('utf8');
  assert.deepEqual(await once(socket, 'data'), ['hello']);
  assert.equal(isFree(place, place.port), false);
  await listening.close();
  assert.equal(server.listening, false);
  assert.equal(isFree(place, place.port), true);
  await listening.close();
});

test('listen starts the server that is passed to it', async (t) => {
  const { port, lockDir } = await scene(t);
  const server = http.createServer((_, response) => response.end('hello'));
  const listening = await listen({ ports: port, lockDir, server, host: '127.0.0.1' });
  assert.equal(listening.server, server);
  assert.equal(server.address().address, '127.0.0.1');
  const response = await fetch(listening.port.url(), { headers: { connection: 'close' } });
  assert.equal(await response.text(), 'hello');
  await listening[Symbol.asyncDispose]();
});

test('the lease outlives the server', async (t) => {
  const place = await scene(t);
  const { port, server } = await listen({ ports: place.port, lockDir: place.lockDir });
  server.close();
  await once(server, 'close');
  assert.equal(isFree(place, place.port), false);
  server.listen(port.port);
  await once(server, 'listening');
  server.close();
  port.release();
});

test('each close waits until the connections have ended', async (t) => {
  const place = await scene(t);
  for (const first of ['close of the lease', 'close of the server']) {
    const listening = await listen({ ports: place.port, lockDir: place.lockDir });
    const { port, server } = listening;
    const socket = net.connect(port.port, port.host);
    await once(server, 'connection');
    const closed = first === 'close of the lease' ? listening.close() : server.close();
    let isClosed = false;
    const closing = listening.close().then(() => (isClosed = true));
    // Longer than any step that does not wait for the connection.
    await sleep(20);
    assert.equal(isClosed, false, first);
    assert.equal(port.released, false, first);
    socket.destroy();
    await Promise.all([closed, closing]);
    assert.equal(port.released, true);
  }
});

test('a server that cannot be started is an error, and leases nothing', async (t) => {
  const place = await scene(t);
  const options = { ports: place.port, lockDir: place.lockDir };
  const busy = await listen();
  t.after(() => busy.close());
  const value = { code: 'ERR_INVALID_ARG_VALUE' };
  await assert.rejects(listen({ ...options, server: busy.server }), value);
  await assert.rejects(listen({ ...options, protocol: 'udp' }), value);
  await assert.rejects(listen({ ...options, host: 'localhost' }), value);
  for (const wrong of [{ server: {} }, { server: 1 }, { host: ['127.0.0.1'] }]) {
    await assert.rejects(listen({ ...options, ...wrong }), { code: 'ERR_INVALID_ARG_TYPE' });
  }
  const failing = net.createServer();
  failing.listen = () => failing.emit('error', new Error('expected'));
  await assert.rejects(listen({ ...options, server: failing }), /expected/);
  assert.equal(isFree(place, place.port), true);
});

test('a signal that arrives together with the socket closes it', async (t) => {
  const place = await scene(t);
  for (let i = 0; i < 20; i++) {
    const controller = new AbortController();
    const { signal } = controller;
    const listening = listen({ ports: place.port, lockDir: place.lockDir, signal });
    setImmediate(() => controller.abort());
    await listening.then(
      (listening) => listening.close(),
      (error) => assert.equal(error.name, 'AbortError'),
    );
    assert.equal(isFree(place, place.port), true);
  }
});

test('a worker of a cluster listens on its own port', async (t) => {
  const { ports, lockDir } = await scene(t, 2);
  cluster.setupPrimary({
    exec: join(root, 'test/cluster-worker.mjs'),
    args: [lockDir, `${ports}`],
  });
  const workers = [cluster.fork(), cluster.fork()];
  t.after(() => workers.forEach((worker) => worker.kill('SIGKILL')));
  const got = await Promise.all(workers.map(async (worker) => (await once(worker, 'message'))[0]));
  assert.deepEqual(got.sort(), ports);
  for (const port of got) {
    assert.equal(await (await fetch(`http://127.0.0.1:${port}/`)).text(), `${port}`);
  }
});
