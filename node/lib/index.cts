export { PortlockError, type PortCounts, type PortlockErrorCode } from './errors.cjs';
export { FreePort, FreePorts } from './free-port.cjs';
export { lease, leaseBlock, leaseMany, leaseOffsets, leaseSync } from './lease.cjs';
export { listen, type Listening, type ListenOptions } from './listen.cjs';
export { type AsyncOptions, type LeaseOptions } from './options.cjs';
export { PortSet, type PortsLike } from './port-set.cjs';
