import { execFile, execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { promisify } from 'node:util';

const run = promisify(execFile);

/** One of two machines, as far as the network goes. */
export interface Host {
  readonly namespace: string;
  readonly device: string;
  readonly ipv4: string;
  readonly ipv6: string;
  /** Put before a command so that it runs there. */
  readonly prefix: readonly string[];
}

const pairs = new Set<NetworkPair>();
process.on('exit', () => {
  for (const pair of pairs) pair.removeSync();
});

/**
 * Two network namespaces joined by veth, without a default route: `await using pair = await NetworkPair.make()`. They go
 * with the test, however it ends.
 */
export class NetworkPair implements AsyncDisposable {
  private constructor(
    readonly server: Host,
    readonly client: Host,
  ) {}

  /** @throws when this machine does not let us */
  static async make(): Promise<NetworkPair> {
    const id = randomBytes(3).toString('hex');
    const host = (role: 's' | 'c', last: number): Host => ({
      namespace: `fabrickv-${role}-${id}`,
      device: `fkv${role}${id}`,
      // 198.18.0.0/15 and 2001:db8::/32 are nobody's.
      ipv4: `198.18.77.${last}`,
      ipv6: `2001:db8:77::${last}`,
      prefix: ['ip', 'netns', 'exec', `fabrickv-${role}-${id}`],
    });
    const pair = new NetworkPair(host('s', 1), host('c', 2));
    pairs.add(pair);
    try {
      for (const { namespace } of [pair.server, pair.client]) await run('ip', ['netns', 'add', namespace]);
      await run('ip', [
        ...['link', 'add', pair.server.device, 'netns', pair.server.namespace, 'type', 'veth'],
        ...['peer', 'name', pair.client.device, 'netns', pair.client.namespace],
      ]);
      for (const { namespace, device, ipv4, ipv6 } of [pair.server, pair.client]) {
        await run('ip', ['-n', namespace, 'address', 'add', `${ipv4}/24`, 'dev', device]);
        // No duplicate address detection: nobody else is there, and it would cost a second.
        await run('ip', ['-n', namespace, '-6', 'address', 'add', `${ipv6}/64`, 'dev', device, 'nodad']);
        await run('ip', ['-n', namespace, 'link', 'set', 'lo', 'up']);
        await run('ip', ['-n', namespace, 'link', 'set', device, 'up']);
      }
      return pair;
    } catch (error) {
      await pair[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Bytes that have come through the wire to a host. */
  async receivedBytes({ namespace, device }: Host): Promise<number> {
    const { stdout } = await run('ip', ['-n', namespace, '-json', '-statistics', 'link', 'show', 'dev', device]);
    const [link] = JSON.parse(stdout) as { stats64: { rx: { bytes: number } } }[];
    if (link === undefined) throw new Error(`no device ${device}`);
    return link.stats64.rx.bytes;
  }

  /** What arrives at a host from the other one is dropped, except TCP from or to one port: gRPC passes, the fabric does not. */
  async dropAllBut({ namespace, device }: Host, port: number): Promise<void> {
    const rules = [
      'add table inet cut',
      'add chain inet cut arriving { type filter hook input priority 0; policy accept; }',
      `add rule inet cut arriving iifname ${device} tcp dport ${port} accept`,
      `add rule inet cut arriving iifname ${device} tcp sport ${port} accept`,
      `add rule inet cut arriving iifname ${device} drop`,
    ];
    await run('ip', ['netns', 'exec', namespace, 'nft', rules.join('; ')]);
  }

  /** New connections to a host are dropped, except to one port; it can open its own. Taken back as {@link dropAllBut} is. */
  async dropIncoming({ namespace, device }: Host, port: number): Promise<void> {
    const rules = [
      'add table inet cut',
      'add chain inet cut arriving { type filter hook input priority 0; policy accept; }',
      'add rule inet cut arriving ct state established,related accept',
      `add rule inet cut arriving iifname ${device} tcp dport ${port} accept`,
      `add rule inet cut arriving iifname ${device} drop`,
    ];
    await run('ip', ['netns', 'exec', namespace, 'nft', rules.join('; ')]);
  }

  /** Gives a host one more address: 198.18.77.`last`. */
  async addAddress({ namespace, device }: Host, last: number): Promise<string> {
    const address = `198.18.77.${last}`;
    await run('ip', ['-n', namespace, 'address', 'add', `${address}/24`, 'dev', device]);
    return address;
  }

  /** What comes to one address of a host, or goes from it, is dropped without a word. Taken back as {@link dropAllBut} is. */
  async dropAddress({ namespace }: Host, address: string): Promise<void> {
    const rules = [
      'add table inet cut',
      'add chain inet cut arriving { type filter hook input priority 0; policy accept; }',
      `add rule inet cut arriving ip daddr ${address} drop`,
      'add chain inet cut leaving { type filter hook output priority 0; policy accept; }',
      `add rule inet cut leaving ip saddr ${address} drop`,
    ];
    await run('ip', ['netns', 'exec', namespace, 'nft', rules.join('; ')]);
  }

  /** Takes {@link dropAllBut} back. */
  async dropNothing({ namespace }: Host): Promise<void> {
    await run('ip', ['netns', 'exec', namespace, 'nft', 'delete table inet cut']);
  }

  removeSync(): void {
    for (const { namespace } of [this.server, this.client]) {
      try {
        // What still runs in there is of this test.
        const pids = execFileSync('ip', ['netns', 'pids', namespace], { encoding: 'utf8', stdio: 'pipe' });
        for (const pid of pids.split('\n').filter((line) => line !== '')) kill(Number(pid));
        execFileSync('ip', ['netns', 'delete', namespace], { stdio: 'ignore' });
      } catch (error) {
        // It was never made, or is gone.
        if (!(error instanceof Error)) throw error;
      }
    }
    pairs.delete(this);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.removeSync();
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    // It has ended meanwhile.
    if (!(error instanceof Error && 'code' in error && error.code === 'ESRCH')) throw error;
  }
}
