// A server that says in which worktree it runs. `portlock run` has put its port into PORT.
import { createServer } from 'node:http';

createServer((request, response) => response.end(`web of ${process.cwd()}\n`))
  .listen(process.env.PORT, '127.0.0.1');
