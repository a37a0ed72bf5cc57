// A worker of a cluster. Its server answers with the number of its port.

import http from 'node:http';

import { listen } from 'portlock';

const [lockDir, ports] = process.argv.slice(2);
const server = http.createServer((_, response) => response.end(`${server.address().port}`));
const { port } = await listen({ ports: ports.split(',').map(Number), lockDir, server });
process.send(port.port);
