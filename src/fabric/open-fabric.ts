import { FabricError, invalidArgument } from './errors.js';
import { type LibfabricInfo, loadLibfabric } from './libfabric.js';
import { type ConsideredProvider, type ProviderChoice, type ProviderName, selectProviders } from './providers.js';
import { type OpenRailOptions, openRail, type Rail, type RailTuning } from './rail.js';
import { checkRailChoice, findPlaces, probeAddress, type RailChoice, type RailPlace } from './rail-places.js';

/** Options of {@link openFabric}. */
export interface OpenFabricOptions extends RailTuning {
  readonly choice: ProviderChoice;
  /** One rail per address for tcp and verbs; EFA has one rail per NIC and ignores them. Empty: wherever libfabric likes. */
  readonly sourceAddresses: readonly string[];
  /** libfabric's own variables, by name; see `loadLibfabric`. */
  readonly environment?: Readonly<Record<string, string>>;
  /** `auto` by default. */
  readonly rails?: RailChoice;
  /** CPUs to bind the progress threads to: rail i of a provider gets the one at i modulo their number. None by default. */
  readonly cpus?: readonly number[];
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
  /**
   * Opens another endpoint at the same place, with a new address, and puts it where the rail was in `providers`. The old
   * rail goes on working until the caller closes it.
   *
   * @throws FabricError as {@link openRail} does, with nothing changed; `INVALID_ARGUMENT` for a rail that is not (or no
   * longer) one of these, `RAIL_CLOSED` after {@link close}.
   */
  replaceRail(rail: Rail): Promise<Rail>;
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
  checkRailChoice(options.rails ?? 'auto');
  const opening = new Opening(options);
  if (options.choice === 'none') return opening.result();
  try {
    await opening.run();
  } catch (error) {
    await opening.rails.close();
    if (options.choice !== 'auto' || !(error instanceof FabricError) || error.code === 'INVALID_ARGUMENT') throw error;
    opening.missing = error;
  }
  return opening.result();
}

class Opening {
  missing: FabricError | undefined;
  readonly rails: RailTable;
  readonly #options: OpenFabricOptions;
  #considered: ConsideredProvider[] = [];
  #libfabric: LibfabricInfo | undefined;

  constructor(options: OpenFabricOptions) {
    this.#options = options;
    this.rails = new RailTable(options.onFailure);
  }

  async run(): Promise<void> {
    const { choice, environment = {}, sourceAddresses, rails = 'auto' } = this.#options;
    this.#libfabric = loadLibfabric({ environment });
    const sourceAddress = probeAddress(rails, sourceAddresses);
    const selection = await selectProviders({ choice, ...(sourceAddress === undefined ? {} : { sourceAddress }) });
    this.#considered = [...selection.considered];
    const wanted = this.#wanted();
    const places = await findPlaces(wanted, rails, sourceAddresses);
    let firstError: unknown;
    for (const [i, candidate] of wanted.entries()) {
      try {
        await this.#openRails(candidate, places[i] ?? []);
      } catch (error) {
        if (choice !== 'auto' || !(error instanceof FabricError)) throw error;
        firstError ??= error;
        const reason = `${candidate.reason}, but it does not open: ${error.message}`;
        this.#considered = this.#considered.map((other) =>
          other === candidate ? { ...candidate, available: false, reason } : other,
        );
      }
    }
    if (this.rails.providers.length > 0) return;
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

  result(): Fabric {
    const { rails } = this;
    return {
      choice: this.#options.choice,
      considered: this.#considered.map(({ provider, available, reason }) => ({ provider, available, reason })),
      providers: rails.providers,
      libfabric: this.#libfabric,
      missing: this.missing,
      replaceRail: (rail) => rails.replace(rail),
      close: () => rails.close(),
    };
  }

  /** The best that is there, and tcp beside it so that two hosts with different NICs have one in common. */
  #wanted(): ConsideredProvider[] {
    const available = this.#considered.filter((candidate) => candidate.available);
    return available.filter((candidate, i) => i === 0 || candidate.provider === 'tcp');
  }

  async #openRails({ provider }: ConsideredProvider, places: readonly RailPlace[]): Promise<void> {
    if (places.length === 0) {
      const text = `none of the rails that were named is one of ${provider}'s`;
      throw new FabricError({ code: 'PROVIDER_MISSING', call: 'openFabric', text });
    }
    const { cpus = [], onFailure: _, ...tuning } = this.#options;
    await this.rails.open(
      provider,
      places.map((place, i) => {
        const cpu = cpus[i % cpus.length];
        return { ...tuning, ...place, provider, ...(cpu === undefined ? {} : { cpu }) };
      }),
    );
  }
}

type MutableProvider = { readonly name: ProviderName; readonly rails: Rail[] };

/** The rails that are open, each with what it was opened with, so that another can take its place. */
class RailTable {
  readonly providers: readonly FabricProvider[];
  readonly #providers: MutableProvider[] = [];
  readonly #openedWith = new Map<Rail, OpenRailOptions>();
  readonly #onFailure: OpenFabricOptions['onFailure'];
  #closed = false;

  constructor(onFailure: OpenFabricOptions['onFailure']) {
    this.providers = this.#providers;
    this.#onFailure = onFailure;
  }

  /** Opens all of a provider's rails, or none. */
  async open(name: ProviderName, places: readonly OpenRailOptions[]): Promise<void> {
    const rails: Rail[] = [];
    try {
      for (const place of places) rails.push(await this.#openOne(place));
    } catch (error) {
      await Promise.all(rails.map((rail) => this.#closeOne(rail)));
      throw error;
    }
    this.#providers.push({ name, rails });
  }

  async replace(rail: Rail): Promise<Rail> {
    const ended = (): FabricError =>
      new FabricError({ code: 'RAIL_CLOSED', call: 'replaceRail', text: 'the rail was closed or replaced' });
    if (this.#closed) throw ended();
    const options = this.#openedWith.get(rail);
    const place = (): { rails: Rail[]; index: number } | undefined => {
      const rails = this.#providers.find((provider) => provider.rails.includes(rail))?.rails;
      return rails === undefined ? undefined : { rails, index: rails.indexOf(rail) };
    };
    if (options === undefined || place() === undefined) {
      throw invalidArgument('replaceRail', "the rail is not one of this fabric's");
    }
    // One that is closed and still in its place is to be replaced yet.
    for (const old of this.#openedWith.keys()) {
      if (old.state === 'closed' && !this.#isInPlace(old)) this.#openedWith.delete(old);
    }
    const replacement = await this.#openOne(options);
    // Somebody may have closed the fabric, or replaced the same rail, meanwhile.
    const now = place();
    if (this.#closed || now === undefined) {
      await this.#closeOne(replacement);
      throw ended();
    }
    now.rails[now.index] = replacement;
    return replacement;
  }

  /** Rails that were replaced as well, in case that the caller has not closed them. */
  async close(): Promise<void> {
    this.#closed = true;
    await Promise.all([...this.#openedWith.keys()].map((rail) => rail.close()));
  }

  #isInPlace(rail: Rail): boolean {
    return this.#providers.some(({ rails }) => rails.includes(rail));
  }

  async #openOne(options: OpenRailOptions): Promise<Rail> {
    const opened: { rail?: Rail } = {};
    const rail = await openRail({
      ...options,
      onFailure: (failure) => {
        if (opened.rail !== undefined) this.#onFailure?.(opened.rail, failure);
      },
    });
    opened.rail = rail;
    this.#openedWith.set(rail, options);
    return rail;
  }

  async #closeOne(rail: Rail): Promise<void> {
    this.#openedWith.delete(rail);
    await rail.close();
  }
}
