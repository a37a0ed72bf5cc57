export type { ServerProcess } from './binding.cjs';
export {
  PortlockError,
  type PortCounts,
  type PortHolder,
  type PortlockErrorCode,
} from './errors.cjs';
export { FreePort, FreePorts } from './free-port.cjs';
export { lease, leaseBlock, leaseMany, leaseOffsets, leaseSync } from './lease.cjs';
export { listen, type Listening, type ListenOptions } from './listen.cjs';
export { type AsyncOptions, type LeaseOptions, type WaitOptions } from './options.cjs';
export { PortSet, type PortsLike } from './port-set.cjs';
