/**
 * A reporter for `node --test` that counts: one JSON line for each test, {passed, failed, skipped, failures, skips}, written
 * as it ends, so that a run that is killed has been counted up to there. scripts/test-total.mjs adds the lines up.
 */

/**
 * @param {AsyncIterable<{ type: string, data: Record<string, any> }>} source
 */
export default async function* count(source) {
  for await (const { type, data } of source) {
    const counted = type === 'test:pass' || type === 'test:fail' ? countOf(type, data) : undefined;
    if (counted !== undefined) {
      yield `${JSON.stringify({ passed: 0, failed: 0, skipped: 0, failures: [], skips: [], ...counted })}\n`;
    }
  }
}

/** What one event adds; nothing for what only contains tests. */
function countOf(type, data) {
  if (data.details?.type === 'suite') return undefined;
  if (type === 'test:fail') {
    // What contains a test that failed is not counted beside it. A file that crashes has failed by itself.
    if (data.details?.error?.failureType === 'subtestsFailed' || data.todo !== undefined) return undefined;
    return { failed: 1, failures: [`${data.name} (${data.file ?? ''}:${data.line ?? ''})`] };
  }
  if (data.skip === undefined || data.skip === false) return { passed: 1 };
  return { skipped: 1, skips: [typeof data.skip === 'string' ? `${data.name}: ${data.skip}` : data.name] };
}
