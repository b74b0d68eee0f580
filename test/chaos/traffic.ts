/** Keeps a number of runs going, follows each, and looks at the lists meanwhile. */
import type { RunSummary, ServerView } from "../../control-plane/api/schemas.ts";
import { systemClock } from "../../shared/system.ts";
import { Chance } from "../simulation/chance.ts";
import type { Client } from "./client.ts";
import type { History, RunRecord, SeenBatch } from "./history.ts";
import type { WitnessLine } from "./witness.ts";
import { type Expectations, PIPELINE_NAMES } from "./workload.ts";

const LOOK_EVERY_MS = 1_000;
const PAGE = 200;
const FETCHES_AT_ONCE = 6;

/** What a run's watch saw, with the time at which it did. */
export interface Seen {
  runId: string;
  kind: string;
  atMs: number;
}

interface Watched {
  id: string;
  key: string;
  pipeline: string;
  batches: SeenBatch[];
  statuses: string[];
}

export class Traffic {
  /** In order. Times are of `nowMs`. */
  readonly seen: Seen[] = [];
  readonly #client: Client;
  readonly #nowMs: () => number;
  readonly #runs = new Map<string, Watched>();
  readonly #chance: Chance;
  #started = 0;

  constructor(options: { client: Client; seed: number; nowMs: () => number }) {
    this.#client = options.client;
    this.#nowMs = options.nowMs;
    this.#chance = new Chance(options.seed + 1);
  }

  get acknowledged(): number {
    return this.#runs.size;
  }

  /** Each of `width` clients starts a run, follows it to its end, and starts the next until `enough`. */
  async flow(width: number, enough: AbortSignal, signal: AbortSignal): Promise<void> {
    const one = async (): Promise<void> => {
      while (!enough.aborted && !signal.aborted) await this.#oneRun(signal);
    };
    const looking = new AbortController();
    const look = this.#look(AbortSignal.any([looking.signal, signal]));
    await Promise.all(Array.from({ length: width }, one));
    looking.abort();
    await look;
  }

  /** The shards that each replica decides for, as far as any of them can say. */
  async owners(): Promise<Map<string, number[]>> {
    const scope = new AbortController();
    const timer = systemClock.after(1_000, () => scope.abort());
    try {
      const { items } = (await this.#client.insist("GET", "/v1/servers", { signal: scope.signal })) as {
        items: ServerView[];
      };
      return new Map(items.map(({ url, shards }) => [url, shards]));
    } catch {
      return new Map();
    } finally {
      timer.cancel();
    }
  }

  /** What the checker reads, once all is whole again. */
  async collect(expected: Expectations, witness: WitnessLine[], signal: AbortSignal): Promise<History> {
    const runs: RunRecord[] = [];
    const waiting = [...this.#runs.values()];
    const fetchOne = async (): Promise<void> => {
      for (let run = waiting.pop(); run; run = waiting.pop()) runs.push(await this.#record(run, signal));
    };
    await Promise.all(Array.from({ length: FETCHES_AT_ONCE }, fetchOne));
    runs.sort((a, b) => (a.id < b.id ? -1 : 1));
    return { expected, runs, listed: await this.#list(signal), witness };
  }

  async #oneRun(signal: AbortSignal): Promise<void> {
    const key = `start-${++this.#started}`;
    const pipeline = this.#chance.pick(PIPELINE_NAMES);
    const body = { pipeline, params: { key } };
    let run: RunSummary;
    try {
      run = (await this.#client.insist("POST", "/v1/runs", { signal, body, key })) as RunSummary;
    } catch {
      return; // never acknowledged; the lists tell whether it exists
    }
    const watched: Watched = { id: run.id, key, pipeline, batches: [], statuses: [] };
    this.#runs.set(run.id, watched);
    for await (const batch of this.#client.follow(run.id, signal)) {
      watched.batches.push(batch);
      const atMs = this.#nowMs();
      for (const { kind } of batch.events) this.seen.push({ runId: run.id, kind, atMs });
    }
  }

  async #look(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      const page = (await this.#client
        .insist("GET", `/v1/runs?limit=${PAGE}`, { signal })
        .catch(() => ({ items: [] }))) as { items: RunSummary[] };
      for (const { id, status } of page.items) {
        const run = this.#runs.get(id);
        if (run && run.statuses.at(-1) !== status) run.statuses.push(status);
      }
      await systemClock.sleep(LOOK_EVERY_MS, signal).catch(() => undefined);
    }
  }

  async #record(run: Watched, signal: AbortSignal): Promise<RunRecord> {
    const finals: Record<string, SeenBatch[] | null> = {};
    for (const name of this.#client.names) finals[name] = await this.#client.history(run.id, name, signal);
    const { id, key, pipeline, batches, statuses } = run;
    const logs = await this.#client.logs(id, signal);
    return { id, key, pipeline, watched: batches, finals, statuses, logs };
  }

  async #list(signal: AbortSignal): Promise<History["listed"]> {
    const listed: History["listed"][number][] = [];
    for (let cursor: string | null = ""; cursor !== null; ) {
      const path: string = `/v1/runs?limit=${PAGE}${cursor === "" ? "" : `&cursor=${encodeURIComponent(cursor)}`}`;
      const page = (await this.#client.insist("GET", path, { signal })) as {
        items: RunSummary[];
        nextCursor: string | null;
      };
      for (const { id, params } of page.items) listed.push({ id, key: String(params.key) });
      cursor = page.nextCursor;
    }
    return listed;
  }
}
