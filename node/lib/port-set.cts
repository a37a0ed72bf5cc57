import { inspect } from 'node:util';

import { binding, type Failure, type Spans } from './binding.cjs';
import { invalidType, outOfRange, PortlockError } from './errors.cjs';

/** Ports to choose from: one, several, or a text such as `'4000-4999,!4045,7000'`. */
export type PortsLike = number | string | Iterable<number> | PortSet;

const MAX_PORT = 65_535;

/**
 * An immutable set of port numbers, 1 to 65535.
 *
 * Its text consists of parts that are separated by commas or white space. A part is a port or a
 * range `first-last`, both included. A part after `!` is excluded, wherever it stands.
 *
 * @example
 * const ports = new PortSet('4000-4999,!4045,7000');
 * ports.has(4045); // false
 * String(ports.difference(new PortSet([4001, 4002]))); // '4000,4003-4044,4046-4999,7000'
 */
export class PortSet implements Iterable<number> {
  readonly #spans: Spans;
  /** The ranges of consecutive ports, in ascending order, as pairs of the first and the last port. */
  readonly ranges: readonly (readonly [first: number, last: number])[];

  /** @throws {PortlockError} `ERR_PORTLOCK_INVALID_PORTS` if a text is not a set of ports. */
  constructor(ports: PortsLike) {
    this.#spans = ports instanceof PortSet ? ports.#spans : spansOf(text(ports));
    this.ranges = Object.freeze(Array.from(pairs(this.#spans), (pair) => Object.freeze(pair)));
    Object.freeze(this);
  }

  /**
   * Returns the ports that this machine leaves to servers, the default of every lease: those of
   * `PORTLOCK_PORTS` or `PORTLOCK_PORTS_FILE` if one is set, otherwise all ports that need no
   * privilege, are outside the ephemeral range, and are not refused by browsers.
   */
  static serverPorts(): PortSet {
    return PortSet.#of(toSpans(binding.serverPorts()));
  }

  /** Returns the ephemeral range, from which the system assigns ports to clients. */
  static ephemeralPorts(): PortSet {
    return PortSet.#of(toSpans(binding.ephemeralPorts()));
  }

  static #of(spans: Spans): PortSet {
    return new PortSet(describe(spans));
  }

  /** The number of ports. */
  get size(): number {
    let size = 0;
    for (const [first, last] of pairs(this.#spans)) {
      size += last - first + 1;
    }
    return size;
  }

  /** Returns whether `port` is in the set. */
  has(port: number): boolean {
    const isIn = ([first, last]: readonly [number, number]) => first <= port && port <= last;
    return Number.isInteger(port) && this.ranges.some(isIn);
  }

  /** Returns the ports that are in this set, in `other`, or in both. */
  union(other: PortsLike): PortSet {
    return new PortSet(`${this},${new PortSet(other)}`);
  }

  /** Returns the ports that are in this set and not in `other`. */
  difference(other: PortsLike): PortSet {
    const without = describe(new PortSet(other).#spans, '!');
    return new PortSet(`${this},${without}`);
  }

  /** Returns the ports that are in both sets. */
  intersection(other: PortsLike): PortSet {
    return this.difference(this.difference(other));
  }

  /** Iterates over the ports in ascending order. */
  *[Symbol.iterator](): Generator<number, void, undefined> {
    for (const [first, last] of pairs(this.#spans)) {
      for (let port = first; port <= last; port++) {
        yield port;
      }
    }
  }

  /** Returns the set as text that the constructor accepts. */
  toString(): string {
    return describe(this.#spans);
  }

  toJSON(): string {
    return this.toString();
  }

  [inspect.custom](): string {
    return `PortSet(${this.size}) { ${this} }`;
  }
}

/**
 * Returns ports as text for the native part.
 * @internal
 */
export function text(ports: PortsLike): string {
  if (typeof ports === 'string') {
    return describe(spansOf(ports));
  }
  if (typeof ports === 'number') {
    return `${checkPort('ports', ports)}`;
  }
  if (ports instanceof PortSet) {
    return ports.toString();
  }
  if (typeof ports !== 'object' || ports === null) {
    throw invalidType(
      'ports',
      "a port, a text such as '4000-6000', or an iterable of ports",
      ports,
    );
  }
  return Array.from(iterable('ports', ports), (port) => checkPort('each of ports', port)).join();
}

/** @internal */
export function iterable(name: string, value: unknown): Iterable<unknown> {
  if (typeof value === 'object' && value !== null && Symbol.iterator in value) {
    return value as Iterable<unknown>;
  }
  throw invalidType(name, 'an iterable of ports', value);
}

/** @internal */
export function checkPort(name: string, value: unknown): number {
  if (typeof value !== 'number') {
    throw invalidType(name, 'a number', value);
  }
  if (!Number.isInteger(value) || value < 1 || value > MAX_PORT) {
    throw outOfRange(name, `an integer from 1 to ${MAX_PORT}`, value);
  }
  return value;
}

function spansOf(text: string): Spans {
  return toSpans(binding.parsePorts(text));
}

function toSpans(outcome: Spans | Failure): Spans {
  if (Array.isArray(outcome)) {
    return outcome;
  }
  throw PortlockError.from(outcome);
}

function* pairs(spans: Spans): Generator<readonly [number, number], void, undefined> {
  for (let i = 0; i + 1 < spans.length; i += 2) {
    yield [spans[i] as number, spans[i + 1] as number];
  }
}

function describe(spans: Spans, prefix = ''): string {
  const parts = Array.from(pairs(spans), ([first, last]) =>
    first === last ? `${prefix}${first}` : `${prefix}${first}-${last}`,
  );
  return parts.join();
}
