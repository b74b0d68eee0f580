/** What a replica that joins, and one that is killed, cost the runs that go on meanwhile. */
import { join } from "node:path";
import type { ServerView } from "../../control-plane/api/schemas.ts";
import type { RunEvent } from "../../shared/engine/events.ts";
import { systemClock } from "../../shared/system.ts";
import { startTestNats } from "../support/nats.ts";
import { Plant, type Replica } from "../support/plant.ts";
import { median } from "./statistics.ts";

export interface Failover {
  /** Longest time, beyond the usual one, between two decisions of one run while a second replica took its share; ms. */
  joinPauseMs: number;
  /** From the SIGKILL of a replica to the first decision elsewhere, of the run that waited longest; ms. */
  elsewhereMs: number;
  /** Runs of the killed replica that were taken over. */
  takenOver: number;
}

const RUNS = 24;
const STEPS = 90;
const CHAIN = {
  kind: "pipeline",
  name: "paced",
  steps: Array.from({ length: STEPS }, (_, i) => ({
    id: `s${i}`,
    environment: "bench",
    ...(i > 0 ? { needs: [`s${i - 1}`] } : {}),
    run: ["sleep", "0.2"],
  })),
};

/** When the next step of the run was offered, each time. */
const offers = (events: readonly RunEvent[]): number[] =>
  events.flatMap((event) => (event.kind === "attempt.offered" ? [event.atMs] : []));

export async function measureFailover(dist: string): Promise<Failover> {
  await using nats = await startTestNats();
  await using plant = new Plant({
    dist,
    env: {
      INSITU_LOG_LEVEL: "warn",
      INSITU_AGENT_NATS_USER: nats.user,
      INSITU_AGENT_NATS_PASSWORD: nats.password,
    },
  });
  const url = nats.url.replace("//", `//${nats.user}:${nats.password}@`);
  const flags = ["--nats-url", url, "--secrets", join(plant.directory, "secrets")];
  const first = await plant.startReplica("replica-1", {}, flags);
  use(plant, first);
  await plant.apply({ kind: "environment", name: "bench", jurisdiction: "DE" }, CHAIN);
  await plant.startAgent("bench", "one", ["--slots", String(RUNS)]);
  const ids: string[] = [];
  for (let i = 0; i < RUNS; i++) ids.push((await plant.start("paced")).id);
  await plant.until(async () => (await plant.run(ids.at(-1)!)).steps[3]?.status === "succeeded");

  const joinMs = systemClock.wallMs();
  const second = await plant.startReplica("replica-2", {}, flags);
  await plant.until(async () => (await shares(plant)).every((count) => count === 32));
  const balancedMs = systemClock.wallMs();
  await plant.until(async () => (await offered(plant, ids)) > balancedMs + 1_000);

  const killedMs = systemClock.wallMs();
  const gone = new Promise((resolve) => second.child.once("exit", resolve));
  second.child.kill("SIGKILL");
  await gone;
  const pauses: number[] = [];
  const waits: number[] = [];
  for (const id of ids) {
    const events = await plant.events(id, () => false);
    const times = offers(events);
    const gaps = times.slice(1).map((atMs, i) => ({ fromMs: times[i]!, atMs, ms: atMs - times[i]! }));
    const joining = gaps.filter(({ fromMs, atMs }) => atMs >= joinMs && fromMs <= balancedMs);
    pauses.push(...joining.map(({ ms }) => ms - median(gaps.map((gap) => gap.ms))));
    const taken = events.find((event) => event.kind === "run.taken-over" && event.atMs >= killedMs);
    if (taken) waits.push(times.find((atMs) => atMs >= taken.atMs)! - killedMs);
  }
  if (waits.length === 0) throw new Error("no run was the killed replica's");
  return { joinPauseMs: Math.max(...pauses), elsewhereMs: Math.max(...waits), takenOver: waits.length };
}

function use(plant: Plant, replica: Replica): void {
  plant.url = replica.url;
  plant.token = replica.token;
}

/** How many shards each of two replicas decides for. */
async function shares(plant: Plant): Promise<number[]> {
  const { items } = (await plant.call("GET", "/v1/servers")) as { items: ServerView[] };
  return items.length === 2 ? items.map(({ shards }) => shards.length) : [0];
}

/** When the run that is furthest behind was last offered, epoch ms. */
async function offered(plant: Plant, ids: readonly string[]): Promise<number> {
  const runs = await Promise.all(ids.map((id) => plant.run(id)));
  return Math.min(...runs.map(({ steps }) => Math.max(0, ...steps.map((step) => step.startedAtMs ?? 0))));
}
