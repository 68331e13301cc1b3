/**
 * The proto files as serializers and as gRPC service definitions. Loaded, once, when they are first needed: a session has a
 * codec of its own (codec.ts), and a client without errors needs nothing else.
 */

import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import type { MethodDefinition } from '@grpc/grpc-js';
import type * as protoLoader from '@grpc/proto-loader';
import type { PackageDefinition } from '@grpc/proto-loader';

// From dist/src/protocol/ to proto/.
const PROTO_ROOT = fileURLToPath(new URL('../../../proto', import.meta.url));

const SERVICE_NAME = 'fabrickv.v1.FabricKV';

/** The name that health checks ask for. */
export const HEALTH_SERVICE_NAME = SERVICE_NAME;

let loaded: PackageDefinition | undefined;

/** The package definition, for server reflection too. Takes some 100 ms the first time. */
export function packageDefinition(): PackageDefinition {
  if (loaded === undefined) {
    const { loadSync } = createRequire(import.meta.url)('@grpc/proto-loader') as typeof protoLoader;
    loaded = loadSync(['fabrickv/v1/fabrickv.proto', 'google/rpc/status.proto'], {
      includeDirs: [PROTO_ROOT],
      defaults: true,
      arrays: true,
      oneofs: true,
      enums: String,
    });
  }
  return loaded;
}

/** A method of the service, by its name in the proto. */
export function methodOf<Request extends object, Response extends object>(
  name: 'Get' | 'Put' | 'Delete' | 'Exists' | 'Stat',
): MethodDefinition<Request, Response> {
  const service = packageDefinition()[SERVICE_NAME] as unknown as Record<string, MethodDefinition<Request, Response>>;
  const method = service[name];
  if (method === undefined) throw new Error(`${SERVICE_NAME} has no method ${name}`);
  return method;
}

/** A message type's serializer and deserializer, for messages that no method takes or returns. */
export function messageOf<Input extends object, Output extends object>(
  name: string,
): { serialize: (value: Input) => Buffer; deserialize: (bytes: Buffer) => Output } {
  const definition = packageDefinition()[name];
  if (definition === undefined || !('serialize' in definition)) throw new Error(`no message ${name}`);
  return definition as unknown as { serialize: (value: Input) => Buffer; deserialize: (bytes: Buffer) => Output };
}
