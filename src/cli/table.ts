/**
 * Tables on terminals and in logs: plain text without colours, so that they can be pasted.
 */

import Table from 'cli-table3';

/** A table of text; columns that hold numbers are set to the right. */
export function createTable(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const table = new Table({
    head: [...head],
    style: { head: [], border: [] },
    colAligns: head.map((_, column) => (rows.every((row) => isNumeric(row[column])) ? 'right' : 'left')),
    chars: { mid: '', 'left-mid': '', 'mid-mid': '', 'right-mid': '' },
  });
  table.push(...rows.map((row) => [...row]));
  // Without a rule under every row, the head needs one of its own.
  const [top = '', heading = '', ...rest] = table.toString().split('\n');
  const rule = top.replace('┌', '├').replace('┐', '┤').replaceAll('┬', '┼');
  return `${[top, heading, ...(rows.length === 0 ? [] : [rule]), ...rest].join('\n')}\n`;
}

function isNumeric(text: string | undefined): boolean {
  return text !== undefined && /^[\d.,-]+$/.test(text);
}
