export { getPort as default, getPort, portNumbers, clearLockedPorts } from './get-port.cjs';
export type { Options } from './get-port.cjs';
