/**
 * A reporter for `node --test` that counts: at the end one JSON line, {passed, failed, skipped, failures, skips}.
 * scripts/test-total.mjs adds the lines of all runs up.
 */

/**
 * @param {AsyncIterable<{ type: string, data: Record<string, any> }>} source
 */
export default async function* count(source) {
  const total = { passed: 0, failed: 0, skipped: 0, failures: [], skips: [] };
  for await (const { type, data } of source) {
    if (type !== 'test:pass' && type !== 'test:fail') continue;
    if (data.details?.type === 'suite') continue;
    if (type === 'test:fail') {
      // What contains a test that failed is not counted beside it. A file that crashes has failed by itself.
      const { failureType } = data.details?.error ?? {};
      if (failureType === 'subtestsFailed' || data.todo !== undefined) continue;
      total.failed += 1;
      total.failures.push(`${data.name} (${data.file ?? ''}:${data.line ?? ''})`);
    } else if (data.skip !== undefined && data.skip !== false) {
      total.skipped += 1;
      total.skips.push(typeof data.skip === 'string' ? `${data.name}: ${data.skip}` : data.name);
    } else {
      total.passed += 1;
    }
  }
  yield `${JSON.stringify(total)}\n`;
}
