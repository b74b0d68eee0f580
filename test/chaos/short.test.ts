/** A short run of `npm run chaos`, and one with a planted fault that it has to find. */
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { findNatsServer } from "../../scripts/find-nats-server.mjs";
import { type ChaosOptions, chaos } from "./chaos.ts";
import { FAULT_KINDS } from "./faults.ts";

async function options(change: Partial<ChaosOptions> & { lines: string[] }): Promise<ChaosOptions> {
  const { lines, ...rest } = change;
  return {
    dist: fileURLToPath(new URL("../../dist", import.meta.url)),
    natsBinary: (await findNatsServer()).path,
    replicas: 2,
    nats: 1,
    sites: 2,
    agentsPerSite: 2,
    kinds: FAULT_KINDS,
    seed: 7,
    durationMs: 15_000,
    meanMs: 1_000,
    concurrentMax: 3,
    width: 4,
    keepLogs: "never",
    say: (line) => lines.push(line),
    signal: new AbortController().signal,
    ...rest,
  };
}

test("replicas, nats-server and agents killed, halted and cut off: nothing is lost, nothing committed twice", {
  timeout: 240_000,
}, async () => {
  const lines: string[] = [];
  const { violations, faults, history } = await chaos(await options({ lines }));
  expect(violations, lines.join("\n")).toEqual([]);
  expect(faults.length).toBeGreaterThanOrEqual(6);
  expect(new Set(faults.map(({ kind }) => kind)).size).toBeGreaterThanOrEqual(4);
  // On a machine that has other work too they are few; one is always going on for each client.
  expect(history.runs.length).toBeGreaterThanOrEqual(4);
  expect(history.witness.length).toBeGreaterThan(history.runs.length * 2);
});

test("steps that run outside their site are found", { timeout: 120_000 }, async () => {
  const planted = { plant: "wrong-site", durationMs: 4_000, kinds: ["kill agent"] } as const;
  const { violations } = await chaos(await options({ lines: [], ...planted }));
  expect(new Set(violations.map(({ kind }) => kind))).toEqual(new Set(["step outside its site"]));
});
