/** What it costs to take NATS along on the gateway's port: hops with and without, in turns on one machine. */
import { join } from "node:path";
import { Plant } from "../support/plant.ts";
import { chain, hops } from "./chain.ts";
import { percentile } from "./statistics.ts";

export interface HopMs {
  p50: number;
  p99: number;
}

/** Beside one another: `direct` is NATS on loopback in the clear, `secured` is NATS off loopback with its own TLS. */
export async function measureOnePort(
  rounds: number,
): Promise<Record<"direct" | "secured" | "onePort", HopMs>> {
  await using direct = await started([]);
  await using secured = await started(["--nats-host", "0.0.0.0"]);
  await using onePort = await started(["--one-port", "127.0.0.1:0"]);
  const plants = { direct, secured, onePort };
  const seen: Record<keyof typeof plants, number[]> = { direct: [], secured: [], onePort: [] };
  for (let round = 0; round < rounds + 2; round++)
    for (const [name, plant] of Object.entries(plants) as [keyof typeof plants, Plant][]) {
      const { events } = await plant.follow("chain-noop");
      if (round >= 2) seen[name].push(...hops(events)); // the first two warm up
    }
  const hopMs = (all: number[]): HopMs => ({ p50: percentile(all, 50), p99: percentile(all, 99) });
  return { direct: hopMs(seen.direct), secured: hopMs(seen.secured), onePort: hopMs(seen.onePort) };
}

async function started(serverFlags: string[]): Promise<Plant> {
  const plant = new Plant({
    dist: join(process.cwd(), "dist"),
    serverFlags,
    env: { INSITU_LOG_LEVEL: "warn" },
  });
  await plant.startServer();
  await plant.apply(
    { kind: "environment", name: "bench", jurisdiction: "DE" },
    chain("chain-noop", { uses: "noop" }),
  );
  await plant.startAgent("bench", "one", ["--slots", "4"]);
  return plant;
}
