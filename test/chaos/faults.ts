/** What is broken when: a list that follows from the seed alone, made before anything starts. */
import { Chance } from "../simulation/chance.ts";

export const FAULT_KINDS = [
  "kill replica",
  "kill nats",
  "kill agent",
  "kill supervisor",
  "kill host",
  "stop replica",
  "stop nats",
  "stop agent",
  "stop supervisor",
  "cut",
  "silence",
  "one-way",
  "loss",
  "slow",
  "unplug",
  "disk full",
  "disk full replica",
  "disk full nats",
  "clock jump",
] as const;
export type FaultKind = (typeof FAULT_KINDS)[number];

/** Who takes part. Names are unique over all of them. */
export interface Cast {
  replicas: readonly string[];
  nats: readonly string[];
  /** Site, then its agents. */
  sites: Readonly<Record<string, readonly string[]>>;
}

export interface Fault {
  id: number;
  kind: FaultKind;
  /** The party that it befalls; of links: what stands on one side. For people and the report. */
  target: string;
  /** From the start of the faults until it begins. */
  atMs: number;
  /** From its begin until it is healed. */
  lengthMs: number;
  /** Of faults of the network: every pair of parties that it stands between; of `one-way`: from the first to the second. */
  pairs: readonly (readonly [string, string])[];
  /** Of `slow`: by how long each piece is late. Of `clock jump`: by how much the clock is wrong. */
  amountMs: number;
  /** Of `loss`: packets lost of a hundred. */
  lossPercent: number;
}

export interface ScheduleOptions {
  seed: number;
  cast: Cast;
  kinds: readonly FaultKind[];
  durationMs: number;
  /** Between the begins of two faults, on average. */
  meanMs: number;
  /** Faults at the same time. */
  concurrentMax: number;
}

/** By kind: how likely, and for how long. */
const SHAPE: Record<FaultKind, { weight: number; minMs: number; maxMs: number }> = {
  "kill replica": { weight: 4, minMs: 200, maxMs: 8_000 },
  "kill nats": { weight: 3, minMs: 200, maxMs: 8_000 },
  "kill agent": { weight: 4, minMs: 200, maxMs: 10_000 },
  "kill supervisor": { weight: 2, minMs: 0, maxMs: 0 },
  "kill host": { weight: 2, minMs: 500, maxMs: 10_000 },
  "stop replica": { weight: 3, minMs: 500, maxMs: 12_000 },
  "stop nats": { weight: 2, minMs: 500, maxMs: 10_000 },
  "stop agent": { weight: 3, minMs: 500, maxMs: 12_000 },
  "stop supervisor": { weight: 2, minMs: 500, maxMs: 8_000 },
  cut: { weight: 4, minMs: 500, maxMs: 12_000 },
  silence: { weight: 4, minMs: 500, maxMs: 20_000 },
  "one-way": { weight: 3, minMs: 500, maxMs: 12_000 },
  loss: { weight: 3, minMs: 2_000, maxMs: 12_000 },
  slow: { weight: 3, minMs: 2_000, maxMs: 12_000 },
  unplug: { weight: 2, minMs: 500, maxMs: 12_000 },
  "disk full": { weight: 2, minMs: 2_000, maxMs: 10_000 },
  "disk full replica": { weight: 2, minMs: 2_000, maxMs: 10_000 },
  "disk full nats": { weight: 2, minMs: 2_000, maxMs: 10_000 },
  "clock jump": { weight: 2, minMs: 2_000, maxMs: 15_000 },
};
const SLOW_MAX_MS = 250;
const JUMP_MAX_MS = 90_000;
const LOSS_MAX_PERCENT = 40;

/** Ordered by `atMs`. A party is under one fault at a time; what would come on top of another is left out. */
export function scheduleFaults(options: ScheduleOptions): Fault[] {
  const { seed, kinds, durationMs, meanMs, concurrentMax } = options;
  const chance = new Chance(seed);
  const faults: Fault[] = [];
  const lastingUntil = new Map<string, number>();
  let atMs = 0;
  for (;;) {
    atMs += chance.wait(meanMs);
    if (atMs >= durationMs) return faults;
    const kind = pickKind(chance, kinds);
    const { minMs, maxMs } = SHAPE[kind];
    // All is drawn before anything is left out, so that an option changes what it says and nothing else.
    const fault = {
      ...(isOfNetwork(kind) ? drawPairs(chance, kind, options.cast) : drawTarget(chance, kind, options.cast)),
      lengthMs: chance.int(minMs, maxMs),
      ...drawAmount(chance, kind),
    };
    const running = [...lastingUntil.values()].filter((untilMs) => untilMs > atMs).length;
    const busy = isOfNetwork(kind) ? `net ${fault.target}` : fault.target;
    if (running >= concurrentMax || (lastingUntil.get(busy) ?? 0) > atMs) continue;
    lastingUntil.set(busy, atMs + fault.lengthMs + 500);
    faults.push({ id: faults.length + 1, kind, atMs, ...fault });
  }
}

export function isOfNetwork(kind: FaultKind): boolean {
  return ["cut", "silence", "one-way", "loss", "slow", "unplug"].includes(kind);
}

/** From whom to whom the network is broken. */
export function waysOf({ kind, pairs }: Pick<Fault, "kind" | "pairs">): (readonly [string, string])[] {
  return kind === "one-way" ? [...pairs] : pairs.flatMap(([a, b]) => [[a, b] as const, [b, a] as const]);
}

function pickKind(chance: Chance, kinds: readonly FaultKind[]): FaultKind {
  const total = kinds.reduce((sum, kind) => sum + SHAPE[kind].weight, 0);
  let at = chance.next() * total;
  for (const kind of kinds) {
    at -= SHAPE[kind].weight;
    if (at < 0) return kind;
  }
  return kinds[kinds.length - 1]!;
}

function drawTarget(chance: Chance, kind: FaultKind, cast: Cast): Pick<Fault, "target" | "pairs"> {
  const agents = agentsOf(cast);
  const candidates = kind.endsWith("replica")
    ? cast.replicas
    : kind.endsWith("nats")
      ? cast.nats
      : kind === "clock jump"
        ? [...agents, ...cast.replicas]
        : agents;
  return { target: chance.pick(candidates), pairs: [] };
}

function drawAmount(chance: Chance, kind: FaultKind): Pick<Fault, "amountMs" | "lossPercent"> {
  const share = chance.next();
  const amount = { amountMs: 0, lossPercent: 0 };
  if (kind === "slow") return { ...amount, amountMs: Math.ceil(share * SLOW_MAX_MS) };
  if (kind === "clock jump") return { ...amount, amountMs: Math.round((share * 2 - 1) * JUMP_MAX_MS) };
  if (kind === "loss") return { ...amount, lossPercent: Math.ceil(share * LOSS_MAX_PERCENT) };
  return amount;
}

/** Where the network breaks: one site from everything, one party from everything, or one party from one tier. */
function drawPairs(chance: Chance, kind: FaultKind, cast: Cast): Pick<Fault, "target" | "pairs"> {
  const everyone = [...cast.replicas, ...cast.nats, ...agentsOf(cast)];
  const between = (some: readonly string[], others: readonly string[]) =>
    some.flatMap((one) =>
      others.filter((other) => !some.includes(other)).map((other) => [one, other] as const),
    );
  const shape = chance.int(1, 6);
  const backwards = chance.next() < 0.5;
  const site = chance.pick(Object.keys(cast.sites));
  const agent = chance.pick(agentsOf(cast));
  const replica = chance.pick(cast.replicas);
  const node = chance.pick(cast.nats);
  const anyone = chance.pick(everyone);
  if (kind === "unplug") return { target: anyone, pairs: between([anyone], everyone) };
  const sides: [string, readonly string[], readonly string[]][] = [
    [`site ${site}`, cast.sites[site]!, everyone],
    [`${agent} / replicas`, [agent], cast.replicas],
    [`${agent} / nats`, [agent], cast.nats],
    [`${replica} / nats`, [replica], cast.nats],
    [node, [node], everyone],
    [replica, [replica], everyone],
  ];
  const [target, some, others] = sides[shape - 1]!;
  const pairs = between(some, others);
  if (kind !== "one-way") return { target, pairs };
  return backwards
    ? { target: `to ${target}`, pairs: pairs.map(([one, other]) => [other, one]) }
    : { target: `from ${target}`, pairs };
}

function agentsOf(cast: Cast): string[] {
  return Object.values(cast.sites).flat();
}
