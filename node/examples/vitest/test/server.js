// A server that tests start as a child process.

import { createServer } from 'node:http';

createServer((_, response) => response.end('hello')).listen(Number(process.env.PORT));
