// A process that leases ports on request.

import { lease } from 'portlock';

const [lockDir, port] = process.argv.slice(2);

process.on('message', (message) => {
  if (message === 'end') {
    process.disconnect();
  } else {
    attempt();
  }
});
attempt();

async function attempt() {
  const options = { ports: Number(port), lockDir, timeout: 0 };
  process.send(await lease(options).then(Number, (error) => error.code));
}
