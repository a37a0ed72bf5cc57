// A server that tests start as a child process.

const { createServer } = require('node:http');

createServer((_, response) => response.end('hello')).listen(Number(process.env.PORT));
