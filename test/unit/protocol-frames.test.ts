/**
 * The generated codec of the session's frames beside what proto-loader makes of the same proto file.
 */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { loadSync } from '@grpc/proto-loader';
import fc from 'fast-check';
import {
  decodeClientFrame,
  decodeServerFrame,
  encodeClientFrame,
  encodeServerFrame,
} from '../../src/protocol/codec.js';
import { FabricKvError } from '../../src/protocol/errors.js';
import { ROOT } from '../support/paths.js';
import { configureProperties } from './support/seed.js';

configureProperties(500);

interface FieldDescription {
  readonly name: string;
  readonly type: string;
  readonly label: string;
  readonly typeName: string;
  readonly oneofIndex?: number;
}

const definition = loadSync('fabrickv/v1/fabrickv.proto', {
  includeDirs: [`${ROOT}proto`],
  defaults: true,
  arrays: true,
  oneofs: true,
  enums: String,
});

interface Codec {
  serialize(value: object): Buffer;
  deserialize(bytes: Buffer): { readonly messages: readonly object[] };
}

const FRAMES = [
  ['ClientFrame', 'ClientMessage', encodeClientFrame, decodeClientFrame],
  ['ServerFrame', 'ServerMessage', encodeServerFrame, decodeServerFrame],
] as const;

const EDGES: Readonly<Record<string, fc.Arbitrary<unknown>>> = {
  TYPE_UINT32: fc.oneof(fc.constantFrom(0, 1, 127, 128, 0xffff_ffff), fc.nat(0xffff_ffff)),
  TYPE_FIXED32: fc.oneof(fc.constantFrom(0, 1, 0x8000_0000, 0xffff_ffff), fc.nat(0xffff_ffff)),
  TYPE_BOOL: fc.boolean(),
  TYPE_STRING: fc.string({ unit: 'grapheme', maxLength: 200 }),
  TYPE_BYTES: fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)),
};
const LONG = fc
  .oneof(
    fc.constantFrom(0n, 1n, 127n, 128n, 0xffff_ffffn, 0x1_0000_0000n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n),
    fc.bigInt(0n, 2n ** 64n - 1n),
  )
  .map((value) => ({ low: Number(value & 0xffff_ffffn) | 0, high: Number(value >> 32n) | 0, unsigned: true }));

const camel = (name: string): string => name.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());

interface MessageDescription {
  readonly field: readonly FieldDescription[];
  readonly nestedType: readonly { readonly name: string; readonly field: readonly FieldDescription[] }[];
}

/** Messages of a type, of any content. */
function anyMessage(name: string): fc.Arbitrary<object> {
  const type = (definition[`fabrickv.v1.${name}`] as unknown as { readonly type: MessageDescription }).type;
  const fields = type.field.map((field): [string, fc.Arbitrary<unknown>] => [camel(field.name), anyField(type, field)]);
  const free = fields.filter((_, index) => type.field[index]?.oneofIndex === undefined);
  const choices = fields.filter((_, index) => type.field[index]?.oneofIndex !== undefined);
  const base = fc.record(Object.fromEntries(free), { requiredKeys: [] });
  if (choices.length === 0) return base;
  const choice = fc.oneof(
    fc.constant({}),
    ...choices.map(([key, value]) => value.map((content) => ({ [key]: content }))),
  );
  return fc.tuple(base, choice).map(([one, other]) => ({ ...one, ...other }));
}

function anyField(type: MessageDescription, { type: kind, label, typeName }: FieldDescription): fc.Arbitrary<unknown> {
  const entry = type.nestedType.find(({ name }) => name === typeName.split('.').at(-1));
  if (entry !== undefined) {
    const valueType = entry.field.find(({ name }) => name === 'value')?.type ?? '';
    const key = fc
      .string({ unit: 'grapheme-ascii', minLength: 1, maxLength: 20 })
      .filter((text) => text !== '__proto__');
    return fc.dictionary(key, EDGES[valueType] ?? LONG, { maxKeys: 5 });
  }
  const one =
    kind === 'TYPE_MESSAGE'
      ? anyMessage(typeName.split('.').at(-1) ?? '')
      : kind === 'TYPE_ENUM'
        ? anyEnum(typeName.split('.').at(-1) ?? '')
        : (EDGES[kind] ?? LONG);
  return label === 'LABEL_REPEATED' ? fc.array(one, { maxLength: 4 }) : one;
}

function anyEnum(name: string): fc.Arbitrary<string> {
  const { type } = definition[`fabrickv.v1.${name}`] as unknown as {
    readonly type: { readonly value: readonly { readonly name: string }[] };
  };
  return fc.constantFrom(...type.value.map((value) => value.name));
}

/** Without the class of its 64-bit numbers, and without what is null: a oneof's absent messages are undefined or null. */
function plain(value: unknown): unknown {
  if (Buffer.isBuffer(value)) return value.toString('hex');
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== 'object' || value === null) return value;
  if ('low' in value && 'high' in value) return `${Number(value.high) >>> 0}:${Number(value.low) >>> 0}`;
  return Object.fromEntries(
    Object.entries(value)
      .filter(([, content]) => content !== null && content !== undefined)
      .map(([key, content]) => [key, plain(content)]),
  );
}

for (const [frame, message, encode, decode] of FRAMES) {
  const reference = definition[`fabrickv.v1.${frame}`] as unknown as Codec;
  const anyFrame = fc.array(anyMessage(message), { maxLength: 6 });

  test(`${frame}: what it encodes, proto-loader decodes to the same`, () => {
    fc.assert(
      fc.property(anyFrame, (messages) => {
        const bytes = encode(messages);
        assert.deepEqual(
          plain(reference.deserialize(bytes).messages),
          plain(reference.deserialize(reference.serialize({ messages })).messages),
        );
      }),
    );
  });

  test(`${frame}: what proto-loader encodes, it decodes to the same`, () => {
    fc.assert(
      fc.property(anyFrame, (messages) => {
        const bytes = reference.serialize({ messages });
        const decoded = decode(bytes);
        assert.ok(!(decoded instanceof FabricKvError), String(decoded));
        assert.deepEqual(plain(decoded), plain(reference.deserialize(bytes).messages));
      }),
    );
  });
}
