import { FabricError } from './errors.js';
import { type LibfabricInfo, loadLibfabric } from './libfabric.js';
import { type ConsideredProvider, type ProviderChoice, type ProviderName, selectProviders } from './providers.js';
import { openRail, type Rail, type RailTuning } from './rail.js';

/** Options of {@link openFabric}. */
export interface OpenFabricOptions extends RailTuning {
  readonly choice: ProviderChoice;
  /** One rail per address for tcp and verbs; EFA has one rail per NIC and ignores them. Empty: wherever libfabric likes. */
  readonly sourceAddresses: readonly string[];
  /** libfabric's own variables, by name; see `loadLibfabric`. */
  readonly environment?: Readonly<Record<string, string>>;
  /** The most rails per provider; all by default. */
  readonly railsMax?: number;
  /** Called once for each rail that fails by itself. */
  readonly onFailure?: (rail: Rail, failure: FabricError) => void;
}

/** One provider's rails. */
export interface FabricProvider {
  readonly name: ProviderName;
  readonly rails: readonly Rail[];
}

/** The data plane of a process. */
export interface Fabric {
  readonly choice: ProviderChoice;
  /** What was found out about each provider, best first; for the log line at start and for `doctor`. */
  readonly considered: readonly Omit<ConsideredProvider, 'endpoints'>[];
  /** What is open, best first; empty without a data plane. With `auto`: the best one, and tcp. */
  readonly providers: readonly FabricProvider[];
  /** Undefined with `none`, and where libfabric is missing. */
  readonly libfabric: LibfabricInfo | undefined;
  /** With `auto`, why there is no data plane and what to install. */
  readonly missing: FabricError | undefined;
  /** Closes every rail. Idempotent. */
  close(): Promise<void>;
}

/**
 * Opens what the choice asks for. With `none` it opens nothing and never loads libfabric. With `auto` it never throws for
 * what the machine lacks: `providers` is then empty and `missing` says why.
 *
 * @throws FabricError when a provider was named: `PROVIDER_MISSING`, `LIBFABRIC_MISSING`, `ADDON_MISSING`.
 */
export async function openFabric(options: OpenFabricOptions): Promise<Fabric> {
  const opening = new Opening(options);
  if (options.choice === 'none') return opening.result();
  try {
    await opening.run();
  } catch (error) {
    await opening.close();
    if (options.choice !== 'auto' || !(error instanceof FabricError)) throw error;
    opening.missing = error;
  }
  return opening.result();
}

class Opening {
  missing: FabricError | undefined;
  readonly #options: OpenFabricOptions;
  readonly #providers: FabricProvider[] = [];
  #considered: ConsideredProvider[] = [];
  #libfabric: LibfabricInfo | undefined;

  constructor(options: OpenFabricOptions) {
    this.#options = options;
  }

  async run(): Promise<void> {
    const { choice, environment = {}, sourceAddresses } = this.#options;
    this.#libfabric = loadLibfabric({ environment });
    const [sourceAddress] = sourceAddresses;
    const selection = await selectProviders({ choice, ...(sourceAddress === undefined ? {} : { sourceAddress }) });
    this.#considered = [...selection.considered];
    let firstError: unknown;
    for (const candidate of this.#wanted()) {
      try {
        this.#providers.push({ name: candidate.provider, rails: await this.#openRails(candidate) });
      } catch (error) {
        if (choice !== 'auto' || !(error instanceof FabricError)) throw error;
        firstError ??= error;
        const reason = `${candidate.reason}, but it does not open: ${error.message}`;
        this.#considered = this.#considered.map((other) =>
          other === candidate ? { ...candidate, available: false, reason } : other,
        );
      }
    }
    if (this.#providers.length > 0) return;
    throw (
      firstError ??
      new FabricError({
        code: 'PROVIDER_MISSING',
        call: 'fi_getinfo',
        text: this.#considered.map((candidate) => candidate.reason).join('; '),
        hint: "`fi_info` lists what libfabric has; see --fabric-addr if the address is not this host's",
      })
    );
  }

  close(): Promise<void> {
    const rails = this.#providers.splice(0).flatMap((provider) => provider.rails);
    return Promise.all(rails.map((rail) => rail.close())).then(() => undefined);
  }

  result(): Fabric {
    const providers = [...this.#providers];
    return {
      choice: this.#options.choice,
      considered: this.#considered.map(({ provider, available, reason }) => ({ provider, available, reason })),
      providers,
      libfabric: this.#libfabric,
      missing: this.missing,
      close: async () => {
        await Promise.all(providers.flatMap(({ rails }) => rails.map((rail) => rail.close())));
      },
    };
  }

  /** The best that is there, and tcp beside it so that two hosts with different NICs have one in common. */
  #wanted(): ConsideredProvider[] {
    const available = this.#considered.filter((candidate) => candidate.available);
    return available.filter((candidate, i) => i === 0 || candidate.provider === 'tcp');
  }

  async #openRails({ provider, endpoints }: ConsideredProvider): Promise<Rail[]> {
    const { sourceAddresses, railsMax = Number.POSITIVE_INFINITY, onFailure } = this.#options;
    const domains = [...new Set(endpoints.map((endpoint) => endpoint.domain))];
    const places: { domain?: string; sourceAddress?: string }[] =
      provider === 'efa'
        ? domains.map((domain) => ({ domain }))
        : sourceAddresses.map((sourceAddress) => ({ sourceAddress }));
    if (places.length === 0) places.push({});
    const rails: Rail[] = [];
    try {
      for (const place of places.slice(0, railsMax)) {
        const opened: { rail?: Rail } = {};
        const rail = await openRail({
          ...this.#options,
          ...place,
          provider,
          onFailure: (failure) => {
            if (opened.rail !== undefined) onFailure?.(opened.rail, failure);
          },
        });
        opened.rail = rail;
        rails.push(rail);
      }
    } catch (error) {
      await Promise.all(rails.map((rail) => rail.close()));
      throw error;
    }
    return rails;
  }
}
