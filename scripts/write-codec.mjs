// Writes src/protocol/generated/frames.ts: the codec of the session's frames, from the proto file. What proto-loader makes of
// the same file is kept for everything else; it converts each message twice, which is most of what a small operation costs.
import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import protobuf from 'protobufjs';

const PROTO = fileURLToPath(new URL('../proto/fabrickv/v1/fabrickv.proto', import.meta.url));
const OUT = fileURLToPath(new URL('../src/protocol/generated/frames.ts', import.meta.url));
const PACKAGE = 'fabrickv.v1';
const ROOTS = ['ClientFrame', 'ServerFrame'];

const root = protobuf.loadSync(PROTO);
root.resolveAll();

/** Each kind of scalar: its wire type, and the code that measures, writes and reads one. */
const SCALARS = {
  uint32: {
    wire: 0,
    isSet: (v) => `(${v} ?? 0) !== 0`,
    value: (v) => `${v} ?? 0`,
    size: (v) => `varintSize(${v})`,
    write: (v) => `w.varint(${v})`,
    read: 'r.uint32()',
    initial: '0',
  },
  bool: {
    wire: 0,
    isSet: (v) => `${v} === true`,
    value: () => '1',
    size: () => '1',
    write: () => 'w.varint(1)',
    read: 'r.bool()',
    initial: 'false',
  },
  uint64: {
    wire: 0,
    isSet: (v) => `isSet64(${v})`,
    value: (v) => v,
    size: (v) => `varint64Size(${v})`,
    write: (v) => `w.varint64(${v})`,
    read: 'r.uint64()',
    initial: 'ZERO',
  },
  fixed32: {
    wire: 5,
    isSet: (v) => `(${v} ?? 0) !== 0`,
    value: (v) => `${v} ?? 0`,
    size: () => '4',
    write: (v) => `w.fixed32(${v})`,
    read: 'r.fixed32()',
    initial: '0',
  },
  fixed64: {
    wire: 1,
    isSet: (v) => `isSet64(${v})`,
    value: (v) => v,
    size: () => '8',
    write: (v) => `w.fixed64(${v})`,
    read: 'r.fixed64()',
    initial: 'ZERO',
  },
};

const types = [];
const collect = (type) => {
  if (types.includes(type)) return;
  types.push(type);
  for (const field of type.fieldsArray) if (field.resolvedType instanceof protobuf.Type) collect(field.resolvedType);
};
for (const name of ROOTS) collect(root.lookupType(`${PACKAGE}.${name}`));

const tagOf = (field, wire) => field.id * 8 + wire;
function tagSize(tag) {
  if (tag >= 0x4000) throw new Error(`no code is written for tags of more than two bytes: ${tag}`);
  return tag < 0x80 ? 1 : 2;
}
const isMessage = (field) => field.resolvedType instanceof protobuf.Type;
const isEnum = (field) => field.resolvedType instanceof protobuf.Enum;
const wireOf = (field) =>
  field.map || field.type === 'string' || field.type === 'bytes' || isMessage(field) ? 2 : scalarOf(field).wire;
const enums = new Set();

function scalarOf(field) {
  if (isEnum(field)) {
    const name = field.resolvedType.name;
    enums.add(field.resolvedType);
    return {
      ...SCALARS.uint32,
      isSet: (v) => `enumNumber(${name}_NUMBERS, ${v}) !== 0`,
      value: (v) => `enumNumber(${name}_NUMBERS, ${v})`,
      // A number of a later version stays one, so that whoever reads it sees that it is none of those that are known.
      read: `enumName(${name}_NAMES, r.uint32())`,
      initial: `'${Object.keys(field.resolvedType.values)[0]}'`,
    };
  }
  const scalar = SCALARS[field.type];
  if (scalar === undefined) throw new Error(`${field.fullName}: no code is written for the type ${field.type}`);
  return scalar;
}

/** The statements of one pass over a field. `pass` is 'size' or 'write'. */
function outgoing(field, pass) {
  const tag = tagOf(field, wireOf(field));
  const v = `m.${field.name}`;
  const sized = pass === 'size';
  const head = sized ? `size += ${tagSize(tag)}` : `w.varint(${tag});`;
  if (field.map) return outgoingMap(field, pass, head);
  if (isMessage(field)) {
    const { name } = field.resolvedType;
    const one = (item) =>
      sized
        ? `{ const place = lengths.reserve(); ${head} + lengths.fill(place, size${name}(${item})); }`
        : `{ ${head} w.varint(lengths.next()); write${name}(${item}, w); }`;
    if (field.repeated) return `if (${v} !== undefined) for (const item of ${v}) ${one('item')}`;
    return `if (${v} !== undefined && ${v} !== null) ${one(v)}`;
  }
  if (field.type === 'string') {
    const one = (item) =>
      sized ? `${head} + lengths.ofString(${item});` : `{ ${head} w.text(${item}, lengths.next()); }`;
    if (field.repeated) return `if (${v} !== undefined) for (const item of ${v}) ${one('item')}`;
    return `if (${v} !== undefined && ${v} !== '') ${one(v)}`;
  }
  if (field.repeated) throw new Error(`${field.fullName}: no code is written for repeated ${field.type}`);
  if (field.type === 'bytes') {
    const body = sized
      ? `const { length } = bytesOf(${v}); ${head} + varintSize(length) + length;`
      : `${head} w.raw(bytesOf(${v}));`;
    return `if (${v} !== undefined && ${v}.length > 0) { ${body} }`;
  }
  const scalar = scalarOf(field);
  const body = sized ? `${head} + ${scalar.size(scalar.value(v))};` : `{ ${head} ${scalar.write(scalar.value(v))}; }`;
  return `if (${scalar.isSet(v)}) ${body}`;
}

/** A map is a repeated message {key = 1, value = 2}; all of ours have strings for keys. */
function outgoingMap(field, pass, head) {
  if (field.keyType !== 'string') throw new Error(`${field.fullName}: no code is written for keys of ${field.keyType}`);
  const text = field.type === 'string';
  const scalar = text ? undefined : SCALARS[field.type];
  const valueTag = 16 + (text ? 2 : scalar.wire);
  const loop = `if (m.${field.name} !== undefined) for (const [key, value] of Object.entries(m.${field.name}))`;
  if (pass === 'size') {
    const value = text ? 'lengths.ofString(value)' : scalar.size('value');
    return `${loop} { const place = lengths.reserve(); const length = 2 + lengths.ofString(key) + ${value}; ${head} + lengths.fill(place, length); }`;
  }
  const value = text ? 'w.text(value, lengths.next());' : `${scalar.write('value')};`;
  return `${loop} { ${head} w.varint(lengths.next()); w.varint(10); w.text(key, lengths.next()); w.varint(${valueTag}); ${value} }`;
}

const oneofOf = (field) => (field.partOf === null || field.partOf === undefined ? undefined : field.partOf.name);

function initialOf(field) {
  if (field.map) return '{}';
  if (field.repeated) return '[]';
  if (isMessage(field)) return 'null';
  if (field.type === 'string') return "''";
  if (field.type === 'bytes') return 'NO_BYTES';
  return scalarOf(field).initial;
}

function readOf(field) {
  if (isMessage(field)) return `read${field.resolvedType.name}(r)`;
  if (field.type === 'string') return 'r.text()';
  if (field.type === 'bytes') return 'r.raw()';
  return scalarOf(field).read;
}

function readMap(field) {
  const text = field.type === 'string';
  const scalar = text ? undefined : SCALARS[field.type];
  return `{
        const outer = r.enter();
        let key = '';
        let value: ${text ? 'string' : 'Long'} = ${text ? "''" : scalar.initial};
        for (let inner = r.tag(); inner !== 0; inner = r.tag()) {
          if (inner === 10) key = r.text();
          else if (inner === ${16 + (text ? 2 : scalar.wire)}) value = ${text ? 'r.text()' : scalar.read};
          else r.skip(inner);
        }
        r.leave(outer);
        ${field.name}[key] = value;
      }`;
}

function mapType(field) {
  return `{ [key: string]: ${field.type === 'string' ? 'string' : 'Long'} }`;
}

/** A message with one oneof of messages: an object of the few fields that are set. */
function readerOfOneof(type, oneof) {
  const others = type.fieldsArray.filter((field) => oneofOf(field) === undefined);
  const simple = type.fieldsArray.every((field) =>
    oneofOf(field) === undefined ? !field.repeated && !field.map : isMessage(field),
  );
  if (!simple)
    throw new Error(`${type.fullName}: no code is written for a oneof of anything but messages, or lists beside it`);
  const cases = type.fieldsArray.map((field) => {
    const tag = tagOf(field, wireOf(field));
    if (oneofOf(field) === undefined)
      return `      case ${tag}:\n        ${field.name} = ${readOf(field)};\n        break;`;
    const rest = others.map(({ name }) => name).join(', ');
    return `      case ${tag}:\n        result = { ${[rest, `${oneof}: '${field.name}'`, `${field.name}: ${readOf(field)}`].filter(Boolean).join(', ')} };\n        break;`;
  });
  const declared = others.map((field) => `  let ${field.name} = ${initialOf(field)};`);
  const empty = others.map(({ name }) => name).join(', ');
  const late = others.map(({ name }) => `  result.${name} = ${name};`);
  return `${declared.join('\n')}
  let result: ${type.name}__Output | undefined;
  for (let tag = r.tag(); tag !== 0; tag = r.tag()) {
    switch (tag) {
${cases.join('\n')}
      default:
        r.skip(tag);
    }
  }
  if (result === undefined) result = { ${empty} };
${late.join('\n')}
  r.leave(outer);
  return result;`;
}

function readerOfFields(type) {
  const declared = type.fieldsArray.map((field) => {
    const of = field.map
      ? `: ${mapType(field)}`
      : field.repeated || isMessage(field) || isEnum(field)
        ? `: ${type.name}__Output['${field.name}']`
        : '';
    const keyword = field.map || field.repeated ? 'const' : 'let';
    return `  ${keyword} ${localOf(field)}${of} = ${initialOf(field)};`;
  });
  const cases = type.fieldsArray.map((field) => {
    const tag = tagOf(field, wireOf(field));
    if (field.map) return `      case ${tag}: ${readMap(field)}\n        break;`;
    if (field.repeated) return `      case ${tag}:\n        ${field.name}.push(${readOf(field)});\n        break;`;
    return `      case ${tag}:\n        ${localOf(field)} = ${readOf(field)};\n        break;`;
  });
  const result = type.fieldsArray.map((field) =>
    localOf(field) === field.name ? field.name : `${field.name}: ${localOf(field)}`,
  );
  const body =
    cases.length === 0
      ? '    r.skip(tag);'
      : `    switch (tag) {\n${cases.join('\n')}\n      default:\n        r.skip(tag);\n    }`;
  return `${declared.join('\n')}
  for (let tag = r.tag(); tag !== 0; tag = r.tag()) {
${body}
  }
  r.leave(outer);
  return { ${result.join(', ')} };`;
}

/** Names that are words of the language. */
function localOf({ name }) {
  return ['delete', 'default', 'in'].includes(name) ? `${name}_` : name;
}

function functionsOf(type) {
  const { name } = type;
  const size = type.fieldsArray.map((field) => `  ${outgoing(field, 'size')}`);
  const write = type.fieldsArray.map((field) => `  ${outgoing(field, 'write')}`);
  const [oneof, ...more] = type.oneofsArray.map((one) => one.name);
  if (more.length > 0) throw new Error(`${type.fullName}: no code is written for several oneofs`);
  const reader = oneof === undefined ? readerOfFields(type) : readerOfOneof(type, oneof);
  const m = type.fieldsArray.length === 0 ? '_m' : 'm';
  const w = type.fieldsArray.length === 0 ? '_w' : 'w';
  return `function size${name}(${m}: ${name}): number {
  ${type.fieldsArray.length === 0 ? 'return 0;' : `let size = 0;\n${size.join('\n')}\n  return size;`}
}

function write${name}(${m}: ${name}, ${w}: WireWriter): void {
${type.fieldsArray.length === 0 ? '  // It has no fields.' : write.join('\n')}
}

function read${name}(r: WireReader): ${name}__Output {
  const outer = r.enter();
${reader}
}
`;
}

/** Frames are at the top, and count their messages. */
function frameFunctions(name, message) {
  return `/** Adds a message to a frame. */
export function append${message}(message: ${message}, w: WireWriter): void {
  lengths.clear();
  const place = lengths.reserve();
  w.reserve(1 + lengths.fill(place, size${message}(message)));
  w.varint(10);
  w.varint(lengths.next());
  write${message}(message, w);
}

/**
 * Decodes the messages of one frame.
 *
 * @throws WireFormatError when it is malformed or has more of something than the limits say
 */
export function decode${name}(bytes: Buffer, limits: FrameLimits): ${message}__Output[] {
  const r = new WireReader(bytes, limits);
  const messages: ${message}__Output[] = [];
  for (let tag = r.tag(); tag !== 0; tag = r.tag()) {
    if (messages.length === limits.messagesMax) {
      throw new WireFormatError(\`over \${limits.messagesMax} messages in one frame\`);
    }
    if (tag === 10) messages.push(read${message}(r));
    else r.skip(tag);
  }
  return messages;
}
`;
}

const messages = types.filter(({ name }) => !ROOTS.includes(name));
const bodies = messages.map(functionsOf);
const tables = [...enums].map(
  ({ name, values }) =>
    `const ${name}_NUMBERS: Readonly<Record<string, number>> = ${JSON.stringify(values)};
const ${name}_NAMES = ${JSON.stringify(Object.keys(values))} as const;
`,
);
for (const { name, values } of enums) {
  if (Object.values(values).some((value, index) => value !== index)) throw new Error(`${name} has gaps`);
}
const imports = messages.map(({ name }) => `import type { ${name}, ${name}__Output } from './fabrickv/v1/${name}.js';`);
writeFileSync(
  OUT,
  `// Written by scripts/write-codec.mjs from proto/fabrickv/v1/fabrickv.proto.
import type { Long } from '@grpc/proto-loader';
${imports.join('\n')}
import {
  bytesOf, enumName, enumNumber, isSet64, Lengths, NO_BYTES, type ReaderLimits, varint64Size, varintSize, WireFormatError, WireReader, WireWriter, ZERO,
} from '../wire-format.js';

/** What one frame may have. */
export interface FrameLimits extends ReaderLimits {
  readonly messagesMax: number;
}

// Of the message that is being encoded: that is done in one go, so one will do.
const lengths = new Lengths();

${tables.join('\n')}
${bodies.join('\n')}
${frameFunctions('ClientFrame', 'ClientMessage')}
${frameFunctions('ServerFrame', 'ServerMessage')}`,
);
