import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { clientExitCode, serverExitCode } from '../../src/cli/exit-codes.js';
import { ERRORS, type ErrorCode, isErrorCode } from '../../src/protocol/errors.js';

describe('exit codes', () => {
  it('has one for every error', () => {
    for (const code of Object.keys(ERRORS)) {
      assert.ok(isErrorCode(code));
      assert.ok([1, 2, 3, 4, 5, 6, 70].includes(clientExitCode(code)), code);
    }
  });

  it('says what design.md, section 9, says', () => {
    const table: Readonly<Partial<Record<ErrorCode, number>>> = {
      ERR_FABRICKV_NOT_FOUND: 1,
      ERR_FABRICKV_SETTING: 2,
      ERR_FABRICKV_INVALID_KEY: 2,
      ERR_FABRICKV_PROVIDER_MISSING: 2,
      ERR_FABRICKV_CONNECT: 3,
      ERR_FABRICKV_CONNECTION_LOST: 3,
      ERR_FABRICKV_NOT_FABRICKV: 3,
      ERR_FABRICKV_PROTOCOL_VERSION: 3,
      ERR_FABRICKV_VALUE_TOO_LARGE: 4,
      ERR_FABRICKV_CAPACITY: 4,
      ERR_FABRICKV_RESOURCE_EXHAUSTED: 4,
      ERR_FABRICKV_DATA_PLANE: 5,
      ERR_FABRICKV_CHECKSUM: 5,
      ERR_FABRICKV_DEADLINE: 6,
    };
    for (const [code, exitCode] of Object.entries(table)) {
      assert.ok(isErrorCode(code));
      assert.equal(clientExitCode(code), exitCode, code);
    }
  });

  it('says 2 when the server cannot start as asked, and 1 for anything else', () => {
    assert.equal(serverExitCode('ERR_FABRICKV_ADDRESS_IN_USE'), 2);
    assert.equal(serverExitCode('ERR_FABRICKV_MEMORY'), 2);
    assert.equal(serverExitCode('ERR_FABRICKV_PROVIDER_MISSING'), 2);
    assert.equal(serverExitCode('ERR_FABRICKV_INTERNAL'), 1);
  });
});
