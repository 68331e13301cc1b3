export { combineCrc32c } from './crc-combine.js';
export { errnoName, FabricError, type FabricErrorCode, type FabricErrorDetails } from './errors.js';
export { EventLoopSpin } from './event-loop-spin.js';
export {
  type LocalRegionId,
  type PeerId,
  type RemoteAddress,
  type RemoteKey,
  type RemoteRegionId,
  remoteAddress,
  remoteKey,
  type TransferId,
} from './ids.js';
export {
  type LibfabricInfo,
  type ListEndpointsOptions,
  type LoadLibfabricOptions,
  listEndpoints,
  loadLibfabric,
  type ProviderEntry,
} from './libfabric.js';
export {
  type CopyInOptions,
  type CopyOutOptions,
  type CrcOptions,
  crc32c,
  type LendOptions,
  type Loan,
  type MapMemoryOptions,
  type Mapping,
  type MemoryBackend,
  mapMemory,
  memoryBackend,
} from './memory.js';
export { type Fabric, type FabricProvider, type OpenFabricOptions, openFabric } from './open-fabric.js';
export { PeerPath, PeerPaths, type PeerPathsOptions, STALL_MS_DEFAULT } from './paths.js';
export {
  type ConsideredProvider,
  LIBFABRIC_PROVIDERS,
  PROVIDER_PREFERENCE,
  type ProviderChoice,
  type ProviderName,
  type ProviderSelection,
  type SelectProvidersOptions,
  selectProviders,
} from './providers.js';
export {
  type EfaRailInfo,
  type LocalRegion,
  type OpenRailOptions,
  openRail,
  type PingOptions,
  type QuiescenceProof,
  type Rail,
  type RailInfo,
  type RailStats,
  type RailTuning,
  type RegisterOptions,
  type RemoteRegionOptions,
  type WriteOptions,
  type WriteSegment,
} from './rail.js';
export type { RailChoice } from './rail-places.js';
export { defaultSourceAddress, sourceAddressFor } from './source-address.js';
export { type RemoteMemory, type StripedSegment, StripedWrite, type StripedWriteOptions } from './striped-write.js';
