/**
 * Agent and supervisor are killed before and in the middle of each of their writes to disk, one after the other.
 *
 * Of a long run: `INSITU_KILLS=200 npm test -- agent/kills.test.ts`; the short one takes its points evenly spaced.
 */
import { createHash } from "node:crypto";
import { once } from "node:events";
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { systemClock } from "../shared/system.ts";
import type { Outcome } from "../shared/wire/attempt.ts";
import { stepSpec } from "../test/support/specs.ts";
import { leaseKey, offerOf } from "./agent.fixture.ts";
import type { Bundle } from "./bundle.fixture.ts";
import type { KillAt } from "./kill-points.fixture.ts";
import { bundleKilledProgram, TestSite } from "./program.fixture.ts";

const KILLS = Number(process.env.INSITU_KILLS ?? 14);
const LOG = "one\ntwo\nthree\n";
const REPORT = "what stays here";
/** An attempt may be lost with its supervisor, and each of its successors too, but nobody kills those. */
const EPOCHS_MAX = 3;
const LATE_MAX_MS = 10_000;

let program: Bundle;
let site: TestSite;
beforeAll(async () => {
  program = await bundleKilledProgram();
  site = await TestSite.open(program, { ackWaitMs: 1_000 });
});
afterAll(async () => {
  await site?.[Symbol.asyncDispose]();
  program?.[Symbol.dispose]();
});

const inSite = (...names: string[]): string => join(site.path, ...names);

async function offer(runId: string, epoch: number): Promise<void> {
  const text = [
    `echo ${runId} ${epoch} >> ${inSite("effects")}`,
    "echo one; echo two >&2; sleep 0.05; echo three",
    "printf 42 > $INSITU_OUTPUT_DIR/total",
    `printf '${REPORT}' > report.txt`,
  ].join("\n");
  await site.publish(
    offerOf({
      lease: leaseKey({ runId, epoch }),
      files: { "lib/a.txt": "a" },
      step: stepSpec("fit", {
        executor: { kind: "process", argv: ["sh", "-ec", text] },
        files: ["lib/a.txt"],
        outputs: { total: { type: "json", maxBytes: 100 } },
        artifacts: { report: { path: "report.txt", maxBytes: 1_000 } },
      } as never),
    }),
  );
}

/** What the centre has on record, by epoch: a report that is sent again has the number that it had. */
function outcomesOf(runId: string): Map<number, Outcome> {
  const bySeq = new Map<number, { epoch: number; outcome: Outcome }>();
  for (const { seq, payload } of site.gateway.reports) {
    if (payload.kind !== "finished" || payload.lease.runId !== runId) continue;
    const { epoch } = payload.lease;
    const known = bySeq.get(seq);
    if (known) expect(payload.outcome).toEqual(known.outcome);
    bySeq.set(seq, { epoch, outcome: payload.outcome });
  }
  const all = [...bySeq.values()];
  expect(new Set(all.map(({ epoch }) => epoch)).size, "an outcome was committed twice").toBe(all.length);
  return new Map(all.map(({ epoch, outcome }) => [epoch, outcome]));
}

function effectsOf(runId: string, epoch: number): number {
  if (!existsSync(inSite("effects"))) return 0;
  return readFileSync(inSite("effects"), "utf8")
    .split("\n")
    .filter((line) => line === `${runId} ${epoch}`).length;
}

const isDone = (runId: string): boolean =>
  [...outcomesOf(runId).values()].some(({ status }) => status !== "interrupted");

/** Nothing of any attempt is left to be done, and what came of it has been received. */
async function settled(runId: string): Promise<void> {
  const names = (): string[] => (existsSync(inSite("work")) ? readdirSync(inSite("work")) : []);
  while (outcomesOf(runId).size === 0 || names().length > 0) await systemClock.sleep(10);
}

/** As the control plane does: what was interrupted is offered again, under the next epoch. */
async function carryOn(runId: string): Promise<void> {
  for (let epoch = 1; epoch <= EPOCHS_MAX; epoch++) {
    await site.gateway.until.holds(() => outcomesOf(runId).has(epoch));
    if (isDone(runId)) return;
    await offer(runId, epoch + 1);
  }
  throw new Error(`${runId} was interrupted under each of ${EPOCHS_MAX} epochs`);
}

/** Returns whether the process was killed: it may make fewer writes than that. */
async function round(runId: string, at: KillAt | undefined): Promise<boolean> {
  rmSync(inSite("killed"), { force: true });
  if (at) writeFileSync(inSite("kill-at.json"), JSON.stringify(at));
  const first = site.start();
  const gone = once(first, "exit");
  await offer(runId, 1);
  await Promise.race([gone, settled(runId)]);
  first.kill("SIGTERM");
  await gone;
  if (!at) await counted();
  const killed = existsSync(inSite("killed"));
  rmSync(inSite("kill-at.json"), { force: true });
  const hellos = site.gateway.hellos.length;
  const next = site.start();
  await site.gateway.connected(hellos + 1);
  await carryOn(runId);
  await settled(runId);
  await check(runId, at);
  const ended = once(next, "exit");
  next.kill("SIGTERM");
  expect(await ended).toEqual([0, null]);
  return killed;
}

async function check(runId: string, at: KillAt | undefined): Promise<void> {
  for (const [epoch, outcome] of outcomesOf(runId)) {
    const where = `${runId} under epoch ${epoch}, ${JSON.stringify(at)}: ${JSON.stringify(outcome.error)}`;
    const effects = effectsOf(runId, epoch);
    if (outcome.status === "interrupted") {
      // Lost with its supervisor it may have run; with its agent alone killed, it did not begin.
      expect(effects, where).toBeLessThanOrEqual(at?.program === "supervisor" ? 1 : 0);
      continue;
    }
    expect(effects, where).toBe(1);
    expect(outcome, where).toMatchObject({ status: "succeeded", outputs: { total: { text: "42" } } });
    expect(outcome.logBytes, where).toBe(LOG.length);
    // Logs go their own way, and may come a moment later.
    for (
      let waited = 0;
      site.logText({ runId, epoch }).length < LOG.length && waited < LATE_MAX_MS;
      waited += 20
    )
      await systemClock.sleep(20);
    expect(site.logText({ runId, epoch }).split("\n").sort(), where).toEqual(LOG.split("\n").sort());
    const hex = createHash("sha256").update(REPORT).digest("hex");
    expect(outcome.artifacts, where).toMatchObject([{ name: "report", digest: `sha256:${hex}` }]);
    expect(readFileSync(inSite("artifacts", "sha256", hex), "utf8")).toBe(REPORT);
  }
  // Half an artifact is nobody's.
  expect(readdirSync(inSite("artifacts", "sha256")).filter((name) => name.startsWith("."))).toEqual([]);
}

const PROGRAMS = ["agent", "supervisor"] as const;
/** How many writes each makes for one attempt, from its start to its end. */
const writes = { agent: 0, supervisor: 0 };

async function counted(): Promise<void> {
  for (const name of PROGRAMS) {
    const file = inSite(`writes-${name}.json`);
    while (!existsSync(file) || readFileSync(file, "utf8") === "") await systemClock.sleep(10);
    writes[name] = (JSON.parse(readFileSync(file, "utf8")) as { writes: number }).writes;
    rmSync(file);
  }
}

test(`${KILLS} kills at writes to disk: no outcome and no line lost, none twice, nothing ran twice`, async () => {
  await round("dry", undefined);
  const points = PROGRAMS.flatMap((name) =>
    Array.from({ length: writes[name] }, (_, i) =>
      [false, true].map((torn) => ({ program: name, write: i + 1, torn })),
    ).flat(),
  );
  expect(points.length).toBeGreaterThan(40);
  const chosen = Array.from({ length: KILLS }, (_, i) =>
    KILLS <= points.length ? points[Math.floor((i * points.length) / KILLS)]! : points[i % points.length]!,
  );
  let killed = 0;
  for (const [i, at] of chosen.entries()) if (await round(`kill-${i}`, at)) killed += 1;
  if (process.env.INSITU_KILLS) console.log({ writes, points: points.length, kills: KILLS, killed });
  // Those at the last writes of one attempt may find that another makes a few less.
  expect(killed).toBeGreaterThan(KILLS * 0.6);
}, 3_600_000);
