// The web server of the run. It answers with its own pid.

import { createServer } from 'node:http';
import { parseArgs } from 'node:util';

const { values } = parseArgs({ options: { port: { type: 'string' } } });

createServer((_, response) => response.end(`${process.pid}`)).listen(Number(values.port));
