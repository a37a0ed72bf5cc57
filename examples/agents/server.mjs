// A server that answers with the path of its worktree. `portlock run` sets PORT to its port.
import { createServer } from 'node:http';

createServer((request, response) => response.end(`web of ${process.cwd()}\n`))
  .listen(process.env.PORT, '127.0.0.1');
