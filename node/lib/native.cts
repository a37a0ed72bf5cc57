/** The paths of the native part and the program. */

import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';

import { PortlockError } from './errors.cjs';

/** Such as `linux-x64-gnu`: the name of a platform, and of the package with its binaries. */
export function platform(): string {
  const { platform, arch } = process;
  return platform === 'linux' ? `linux-${arch}-${libc()}` : `${platform}-${arch}`;
}

function libc(): 'gnu' | 'musl' {
  const report = process.report.getReport() as { header?: { glibcVersionRuntime?: string } };
  return report.header?.glibcVersionRuntime === undefined ? 'musl' : 'gnu';
}

/** Returns the path of a file of the native part. */
function find(file: string): string {
  // The result of `npm run build` comes first.
  const built = join(__dirname, '..', 'native', file);
  if (existsSync(built)) {
    return built;
  }
  const name = `@portlock/${platform()}`;
  try {
    return createRequire(__filename).resolve(`${name}/${file}`);
  } catch (cause) {
    const message =
      `portlock has no native part for ${platform()}: the package ${name} is not installed. ` +
      'If there is such a package, install portlock again with optional dependencies ' +
      '(without --omit=optional, and on this system). If there is none, build it: clone the ' +
      'repository and run `npm ci && npm run build` in node/, which needs Rust.';
    throw new PortlockError('ERR_PORTLOCK_NO_BINARY', message, { cause });
  }
}

export function addon(): unknown {
  return createRequire(__filename)(find('portlock.node'));
}

export function program(): string {
  return find(process.platform === 'win32' ? 'portlock.exe' : 'portlock');
}
