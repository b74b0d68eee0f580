/** Work that was acknowledged before a power cut of the centre, and what has to be there of it afterwards. */
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { expect } from "vitest";
import type { LogLine, RunSummary } from "../../control-plane/api/schemas.ts";
import type { Plant } from "./plant.ts";

const SITE = { kind: "environment", name: "site", jurisdiction: "DE" };
const LINES = 50;

export interface Acknowledged {
  /** Runs that wait for the gate. */
  slow: string[];
  /** Of the keys k1 to k3. */
  ended: string[];
  /** Acknowledged a moment ago. */
  waiting: string;
  /** Used up. */
  joinToken: string;
}

/** @param gate a file that is not there yet: steps wait for it */
export async function acknowledge(plant: Plant, gate: string): Promise<Acknowledged> {
  const talk = `i=0; while [ $i -lt ${LINES} ]; do echo "line $i"; i=$((i+1)); done`;
  const wait = `while [ ! -e "$GATE" ]; do sleep 0.02; done`;
  const step = { environment: "site", env: { GATE: gate } };
  await plant.apply(
    SITE,
    { kind: "pipeline", name: "quick", steps: [{ id: "talk", ...step, run: ["sh", "-ec", talk] }] },
    {
      kind: "pipeline",
      name: "slow",
      steps: [
        { id: "wait", ...step, run: ["sh", "-ec", `${talk}; ${wait}`] },
        { id: "after", ...step, needs: ["wait"], run: ["true"] },
      ],
    },
  );
  const { token } = (await plant.call("POST", "/v1/join-tokens", { environment: "site" })) as {
    token: string;
  };
  plant.spawnAgent("site", "a", ["--join-token", token, "--slots", "4"]);
  const slow = await Promise.all([plant.start("slow"), plant.start("slow")]);
  for (const { id } of slow)
    await plant.events(id, (events) => events.some(({ kind }) => kind === "attempt.started"));
  const ended = await Promise.all(["k1", "k2", "k3"].map((key) => startWithKey(plant, key)));
  for (const id of ended) await plant.events(id, () => false);
  const waiting = await startWithKey(plant, "k4");
  return { slow: slow.map(({ id }) => id), ended, waiting, joinToken: token };
}

/** The agent is known, and its steps have gone on; nothing is started or told twice. */
export async function expectAcknowledged(plant: Plant, gate: string, before: Acknowledged): Promise<void> {
  const { slow, ended, waiting, joinToken } = before;
  expect(await startWithKey(plant, "k1")).toBe(ended[0]);
  writeFileSync(gate, "");
  for (const id of [...slow, ...ended, waiting]) {
    const events = await plant.events(id, () => false);
    expect(events.at(-1)).toMatchObject({ kind: "run.finished", status: "succeeded" });
    const outcomes = events.filter(({ kind }) => kind === "attempt.finished").length;
    expect(outcomes).toBe(slow.includes(id) ? 2 : 1);
    expect(await logOf(plant, id)).toBe(Array.from({ length: LINES }, (_, i) => `line ${i}\n`).join(""));
  }
  // A token that was used up stays so.
  const second = plant.spawnAgent("site", "b", ["--join-token", joinToken]);
  expect(await once(second, "exit")).not.toEqual([0, null]);
}

/** As clients do: again when the centre says that it cannot now. */
async function startWithKey(plant: Plant, key: string): Promise<string> {
  for (;;) {
    const response = await fetch(`${plant.url}/v1/runs`, {
      method: "POST",
      headers: {
        authorization: `Bearer ${plant.token}`,
        "content-type": "application/json",
        "idempotency-key": key,
      },
      body: JSON.stringify({ pipeline: "quick" }),
    });
    if (response.ok) return ((await response.json()) as RunSummary).id;
    expect([response.status, await response.text()]).toEqual([503, expect.any(String)]);
  }
}

async function logOf(plant: Plant, runId: string): Promise<string> {
  const response = await fetch(`${plant.url}/v1/runs/${runId}/logs?follow=true`, {
    headers: { authorization: `Bearer ${plant.token}`, "accept-encoding": "gzip" },
  });
  const lines = (await response.text()).split("\n").filter((line) => line !== "");
  return Buffer.concat(
    lines.map((line) => Buffer.from((JSON.parse(line) as LogLine).data, "base64")),
  ).toString();
}
