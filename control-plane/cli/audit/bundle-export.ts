/** Makes a bundle of what the server shows: the leaves of the ledger, and what they speak of. */
import { InsituError } from "../../../shared/errors.ts";
import { digestOf } from "../../../shared/model/canonical.ts";
import type { DatasetSpec, EnvironmentSpec } from "../../../shared/model/spec.ts";
import { openCheckpoint } from "../../../shared/provenance/checkpoint.ts";
import { toBase64 } from "../../../shared/provenance/encoding.ts";
import { type LedgerEntry, parseEntry } from "../../../shared/provenance/ledger-entry.ts";
import { leafHash, nodeHash } from "../../../shared/provenance/merkle.ts";
import { parseVerifierKey } from "../../../shared/provenance/signed-note.ts";
import { entriesPath, parseEntries, TILE_WIDTH } from "../../../shared/provenance/tiles.ts";
import type { Clock } from "../../../shared/system.ts";
import { SOFTWARE_VERSION } from "../../../shared/wire/protocol.ts";
import type { BundleRecord } from "../../evidence/bundle/records.ts";
import { DEFAULT_POLICIES } from "../../placement/default-policies.ts";
import type { ApiClient } from "../client.ts";

export interface BundleRequest {
  dataset: string;
  /** Wall time by the control plane's clock; null: without that limit. */
  fromMs: number | null;
  toMs: number | null;
}

type Server = Pick<
  ApiClient,
  "ledgerKey" | "ledgerCheckpoint" | "ledgerTile" | "listAgents" | "getVersion" | "getResource"
>;

/** A replica that has not seen the newest checkpoint yet has no tiles of it. */
const APPEARS_MS = 5_000;
const LOOK_MS = 200;

interface Leaf {
  index: number;
  bytes: Uint8Array;
  entry: LedgerEntry | undefined;
}

export async function* bundleRecords(
  server: Server,
  request: BundleRequest,
  { clock, signal }: { clock: Clock; signal: AbortSignal },
): AsyncGenerator<BundleRecord> {
  let records = 0;
  for await (const record of unended(server, request, { clock, signal })) {
    records += 1;
    yield record;
  }
  yield { kind: "end", records };
}

async function* unended(
  server: Server,
  request: BundleRequest,
  world: { clock: Clock; signal: AbortSignal },
): AsyncGenerator<BundleRecord> {
  const { clock, signal } = world;
  const { verifierKey, trustDomain, rootsPem } = await server.ledgerKey(signal);
  const checkpoint = await server.ledgerCheckpoint(signal);
  const key = parseVerifierKey(verifierKey);
  const opened = key && openCheckpoint(checkpoint, key);
  if (opened?.kind !== "verified")
    throw new InsituError(
      "evidence.refused",
      `the checkpoint does not verify with the server's own key: ${opened?.reason ?? "it is no key"}`,
    );
  const { size } = opened.checkpoint;
  yield {
    kind: "bundle",
    v: 1,
    ...request,
    madeAtMs: clock.wallMs(),
    software: `insitu ${SOFTWARE_VERSION}`,
  };
  yield { kind: "ledger", checkpoint, verifierKey, trustDomain, rootsPem };
  const [first, end] = await rangeOf(server, request, size, world);
  const spoken = new Spoken(request.dataset);
  let hidden = new HiddenLeaves(0);
  for await (const { index, bytes, entry } of leavesOf(server, size, world)) {
    if (index < first || index >= end) {
      hidden.add(leafHash(bytes));
      continue;
    }
    if (hidden.nodes.length > 0) yield { kind: "nodes", nodes: hidden.nodes };
    hidden = new HiddenLeaves(end);
    spoken.of(entry);
    yield { kind: "leaf", leaf: toBase64(bytes) };
  }
  if (hidden.nodes.length > 0) yield { kind: "nodes", nodes: hidden.nodes };
  yield* spoken.records(server, signal);
}

/** The leaves in their order, each as the server shows it: nothing is verified here. */
async function* leavesOf(
  server: Server,
  size: number,
  { clock, signal }: { clock: Clock; signal: AbortSignal },
): AsyncGenerator<Leaf> {
  for (let first = 0; first < size; first += TILE_WIDTH) {
    const path = entriesPath({ index: first / TILE_WIDTH, width: Math.min(TILE_WIDTH, size - first) });
    const giveUpAtMs = clock.monotonicMs() + APPEARS_MS;
    let bytes: Uint8Array | undefined;
    while (!bytes) {
      try {
        bytes = await server.ledgerTile(path, signal);
      } catch (thrown) {
        if (InsituError.from(thrown).code !== "not-found" || clock.monotonicMs() > giveUpAtMs) throw thrown;
        await clock.sleep(LOOK_MS, signal);
      }
    }
    const entries = parseEntries(bytes);
    if (!entries) throw new InsituError("evidence.refused", `${path}, as the server gave it, cannot be read`);
    for (const [at, entry] of entries.entries())
      yield { index: first + at, bytes: entry, entry: parseEntry(entry) };
  }
}

/** The leaves from the first one to the last one of the time that is asked for: all that lie between are in it. */
async function rangeOf(
  server: Server,
  { fromMs, toMs }: BundleRequest,
  size: number,
  world: { clock: Clock; signal: AbortSignal },
): Promise<[number, number]> {
  if (fromMs === null && toMs === null) return [0, size];
  let [first, end] = [size, 0];
  let isAfterReceipt = false;
  for await (const { index, entry } of leavesOf(server, size, world)) {
    // A receipt comes before the decision that tells its time.
    const from = isAfterReceipt ? index - 1 : index;
    isAfterReceipt = entry?.kind === "receipt";
    if (entry?.kind !== "decision") continue;
    if (fromMs === null || entry.atMs >= fromMs) first = Math.min(first, from);
    if (toMs === null || entry.atMs <= toMs) end = index + 1;
  }
  return [fromMs === null ? 0 : first, Math.max(first, toMs === null ? size : end)];
}

/** Leaves that are left out, as few hashes as there can be. */
class HiddenLeaves {
  readonly #start: number;
  readonly #nodes: { level: number; hash: Uint8Array; index: number }[] = [];
  #count = 0;

  constructor(start: number) {
    this.#start = start;
  }

  add(hash: Uint8Array): void {
    let node = { level: 0, hash, index: this.#start + this.#count };
    this.#count += 1;
    for (
      let last = this.#nodes.at(-1);
      last?.level === node.level && last.index % 2 === 0;
      last = this.#nodes.at(-1)
    ) {
      this.#nodes.pop();
      node = { level: last.level + 1, hash: nodeHash(last.hash, node.hash), index: last.index / 2 };
    }
    this.#nodes.push(node);
  }

  get nodes(): { level: number; hash: string }[] {
    return this.#nodes.map(({ level, hash }) => ({ level, hash: toBase64(hash) }));
  }
}

/** What the leaves about the dataset speak of, and the server has the text of. */
class Spoken {
  readonly #dataset: string;
  readonly #versions = new Map<string, string>();
  readonly #environments = new Set<string>();
  readonly #policies = new Set<string>();

  constructor(dataset: string) {
    this.#dataset = dataset;
  }

  of(entry: LedgerEntry | undefined): void {
    if (entry?.kind !== "decision" || entry.decision.kind !== "attempt.placed") return;
    const { reads, writes, version, pipeline, environment, policyVersion } = entry.decision;
    if (![...reads, ...writes].includes(this.#dataset)) return;
    this.#versions.set(version, pipeline);
    this.#environments.add(environment);
    this.#policies.add(policyVersion);
  }

  async *records(server: Server, signal: AbortSignal): AsyncGenerator<BundleRecord> {
    for (const [version, pipeline] of this.#versions) {
      const found = await present(server.getVersion(pipeline, version, signal));
      if (found) yield { kind: "pipeline", version, spec: { ...found.spec, steps: found.spec.steps } };
    }
    const dataset = await present(server.getResource("dataset", this.#dataset, signal));
    if (dataset) yield { kind: "dataset", spec: dataset.spec as DatasetSpec };
    for (const name of this.#environments) {
      const found = await present(server.getResource("environment", name, signal));
      if (found) yield { kind: "environment", spec: found.spec as EnvironmentSpec };
    }
    const { schema, rules } = DEFAULT_POLICIES;
    const version = digestOf({ schema, rules });
    if (this.#policies.has(version)) yield { kind: "policy", version, schema, rules: { ...rules } };
    for (const { id, revoked } of await server.listAgents(signal))
      if (revoked) yield { kind: "revocation", agent: id, ...revoked };
  }
}

/** Undefined for what is not there any more: whoever verifies says what rests on it. */
async function present<T>(asked: Promise<T>): Promise<T | undefined> {
  try {
    return await asked;
  } catch (thrown) {
    if (InsituError.from(thrown).code === "not-found") return undefined;
    throw thrown;
  }
}
