import { nativeAddon } from './addon.js';
import { FabricError, type FabricErrorDetails, invalidArgument, translateErrors } from './errors.js';
import { LoanTable } from './loans.js';
import type { CopyInOptions, CopyOutOptions, CrcOptions, LendOptions, Loan, Mapping } from './mapping.js';

const VIEW_BYTES_MAX = 2 ** 30;

const loans = new LoanTable();
let listening = false;

/** Mappings whose JS handle was dropped without `close()`: their native handle is closed for them. */
const forgotten = new FinalizationRegistry<number>((id) => nativeAddon().closeMapping(id));

// Outside of `lend`, where it would keep the first loan for ever.
function settleAll(returned: readonly number[]): void {
  for (const loan of returned) loans.settle(loan);
}

/** A {@link Mapping} over `mmap`. */
export class NativeMapping implements Mapping {
  readonly id: number;
  readonly sizeBytes: number;
  readonly hugePages: boolean;
  #closed = false;

  constructor(id: number, sizeBytes: number, hugePages: boolean) {
    this.id = id;
    this.sizeBytes = sizeBytes;
    this.hugePages = hugePages;
    forgotten.register(this, id, this);
  }

  buffer(offset: number, length: number): Buffer {
    this.#check('buffer', offset, length);
    if (length > VIEW_BYTES_MAX) throw invalidArgument('buffer', `a view of ${length} bytes; at most 1 GiB each`);
    return Buffer.from(unwrap(nativeAddon().viewMapping(this.id, offset, length)));
  }

  lend({ offset, length, onReturned }: LendOptions): Loan {
    this.#check('lend', offset, length);
    const addon = nativeAddon();
    if (!listening) {
      listening = true;
      addon.onLoansReturned(settleAll);
    }
    const loan = loans.add(onReturned);
    const lent = addon.lendMapping(this.id, offset, length, loan);
    if (!(lent instanceof ArrayBuffer)) {
      loans.forget(loan);
      throw new FabricError(lent);
    }
    return {
      arrayBuffer: lent,
      release(): void {
        if (addon.detach(lent)) loans.settle(loan);
      },
    };
  }

  copyIn({ offset, source, crcSeed = 0 }: CopyInOptions): Promise<number> {
    return this.#task('copyIn', offset, source.byteLength, () =>
      nativeAddon().copyIn(this.id, offset, source, crcSeed),
    );
  }

  copyOut({ offset, target, crcSeed = 0 }: CopyOutOptions): Promise<number> {
    return this.#task('copyOut', offset, target.byteLength, () =>
      nativeAddon().copyOut(this.id, offset, target, crcSeed),
    );
  }

  crc32c({ offset, length, seed = 0 }: CrcOptions): Promise<number> {
    return this.#task('crc32c', offset, length, () => nativeAddon().crc32cOfMapping(this.id, offset, length, seed));
  }

  writeSync(offset: number, source: Uint8Array): void {
    this.#check('writeSync', offset, source.byteLength);
    const error = nativeAddon().writeSync(this.id, offset, source);
    if (error !== undefined) throw new FabricError(error);
  }

  readSync(offset: number, length: number): Buffer {
    this.#check('readSync', offset, length);
    const target = Buffer.allocUnsafe(length);
    const error = nativeAddon().readSync(this.id, offset, target);
    if (error !== undefined) throw new FabricError(error);
    return target;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    forgotten.unregister(this);
    nativeAddon().closeMapping(this.id);
  }

  async #task(call: string, offset: number, length: number, start: () => Promise<number>): Promise<number> {
    this.#check(call, offset, length);
    return translateErrors(start());
  }

  #check(call: string, offset: number, length: number): void {
    if (this.#closed) throw invalidArgument(call, `mapping ${this.id} is closed`);
    checkRange(call, offset, length, this.sizeBytes);
  }
}

/** Maps memory on libuv's pool. @throws FabricError `MAPPING_FAILED`. */
export async function mapNativeMemory(
  sizeBytes: number,
  prefault: boolean,
  hugePages: boolean,
  numaNode: number | undefined,
): Promise<Mapping> {
  const mapped = await translateErrors(nativeAddon().mapMemory(sizeBytes, prefault, hugePages, numaNode ?? -1));
  return new NativeMapping(mapped.id, sizeBytes, mapped.hugePages);
}

/** @throws FabricError `INVALID_ARGUMENT` unless `offset` and `length` are integers and lie within `sizeBytes`. */
export function checkRange(call: string, offset: number, length: number, sizeBytes: number): void {
  if (Number.isSafeInteger(offset) && Number.isSafeInteger(length)) {
    if (offset >= 0 && length >= 0 && offset <= sizeBytes - length) return;
  }
  throw invalidArgument(call, `bytes ${offset} + ${length} are outside the mapping's ${sizeBytes}`);
}

function unwrap(result: ArrayBuffer | FabricErrorDetails): ArrayBuffer {
  if (result instanceof ArrayBuffer) return result;
  throw new FabricError(result);
}
