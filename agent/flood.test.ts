/**
 * A step that writes without end, with a centre that takes it and with one that is away.
 *
 * Of a long run: `INSITU_FLOOD_MB=1000 npm test -- agent/flood.test.ts`, which prints what it saw.
 */
import { readFileSync } from "node:fs";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { systemClock } from "../shared/system.ts";
import { decodeLogEntries } from "../shared/wire/log-codec.ts";
import { leaseKey } from "./agent.fixture.ts";
import type { Bundle } from "./bundle.fixture.ts";
import { bundleProgram, shell, TestSite } from "./program.fixture.ts";

const FLOOD_MB = Number(process.env.INSITU_FLOOD_MB ?? 100);
/** 57 bytes of chance in base 64, and the end of the line: nothing that compression makes small. */
const LINE_BYTES = 77;
const LINES = Math.floor((FLOOD_MB * 1_000_000) / LINE_BYTES);
const BYTES = LINES * LINE_BYTES;
const HEARTBEAT_MS = 100;
/** Three heartbeats fit into a lease of that ratio. */
const LATE_MAX_MS = 2_000;
const MEMORY_MAX_MB = 250;
const MiB = 1024 * 1024;

let program: Bundle;
let site: TestSite;
beforeAll(async () => {
  program = await bundleProgram();
});
afterAll(() => program?.[Symbol.dispose]());
beforeEach(async () => {
  site = await TestSite.open(program);
  site.gateway.welcome = { ...site.gateway.welcome, heartbeatMs: HEARTBEAT_MS };
});
afterEach(() => site?.[Symbol.asyncDispose]());

const flood = () => shell(`head -c ${LINES * 57} /dev/urandom | base64 -w 76; exit 4`);
const ended = (exitCode: number) =>
  site.gateway.until.holds(() => site.outcomes().some((outcome) => outcome.exitCode === exitCode));

/**
 * The most memory of their own that agent and supervisor have, in MB, until it is asked for: `RssAnon` of
 * proc_pid_status(5). The journal's file is mapped as well; its pages are the kernel's to take.
 */
function watchMemory(agent: number): { peaksMb(): number[] } {
  const peaks = new Map<number, number>();
  const look = (): void => {
    for (const pid of [agent, ...site.supervisors()]) {
      const line = /^RssAnon:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"));
      peaks.set(pid, Math.max(peaks.get(pid) ?? 0, Math.round(Number(line?.[1]) / 1_000)));
    }
  };
  const timer = systemClock.every(50, look);
  return {
    peaksMb() {
      timer.cancel();
      return [...peaks.values()];
    },
  };
}

/** Between two heartbeats as the agent sent them, at the most. */
function longestSilenceMs(): number {
  const sent = site.gateway.heartbeats.map(({ sentAtMs }) => Number(sentAtMs));
  return Math.max(...sent.slice(1).map((atMs, i) => atMs - sent[i]!));
}

/** Each entry once: content, and what notes say was dropped. */
function arrived(runId = "run-1"): { bytes: number; droppedBytes: number; droppedLines: number } {
  const sums = { bytes: 0, droppedBytes: 0, droppedLines: 0 };
  let next = 1;
  for (const chunk of site.gateway.chunks) {
    if (chunk.runId !== runId || chunk.firstEntry + chunk.entryCount <= next) continue;
    for (const entry of decodeLogEntries(chunk.encoding as "identity", chunk.entries)) {
      if (entry.seq < next) continue;
      sums.bytes += entry.data.length;
      sums.droppedBytes += entry.droppedBytes;
      sums.droppedLines += entry.droppedLines ?? 0;
    }
    next = chunk.firstEntry + chunk.entryCount;
  }
  return sums;
}

function report(what: string, figures: object): void {
  if (process.env.INSITU_FLOOD_MB) console.log(what, figures);
}

/** Other steps begin and end while the flood goes on. */
async function others(count: number): Promise<number> {
  const startedMs = systemClock.monotonicMs();
  for (let i = 0; i < count; i++) {
    await site.publish(shell(`exit ${20 + i}`, { lease: leaseKey({ runId: `other-${i}` }) }));
    await ended(20 + i);
  }
  return (systemClock.monotonicMs() - startedMs) / count;
}

test(`a flood of ${FLOOD_MB} MB arrives whole, takes little memory, and makes neither heartbeats late nor other steps wait`, async () => {
  const child = site.start();
  const memory = watchMemory(child.pid!);
  await site.publish(flood());
  await site.gateway.until.holds(() => site.gateway.chunks.length > 10);
  const otherMs = await others(3);
  expect(site.outcomes().some(({ exitCode }) => exitCode === 4)).toBe(false);
  await ended(4);
  const outcome = site.outcomes().find(({ exitCode }) => exitCode === 4)!;
  expect(outcome).toMatchObject({ logBytes: BYTES, logDroppedBytes: 0 });
  await site.gateway.until.holds(
    () =>
      site.gateway.chunks.at(-1)!.firstEntry + site.gateway.chunks.at(-1)!.entryCount > outcome.logLastSeq,
  );
  expect(arrived()).toEqual({ bytes: BYTES, droppedBytes: 0, droppedLines: 0 });
  const peaks = memory.peaksMb();
  report("with a centre", { peaks, silenceMs: longestSilenceMs(), otherMs });
  for (const peak of peaks) expect(peak).toBeLessThan(MEMORY_MAX_MB);
  expect(longestSilenceMs()).toBeLessThan(LATE_MAX_MS);
}, 600_000);

test(`of a flood of ${FLOOD_MB} MB that nobody takes, lines give way and are counted; the result does not`, async () => {
  const config = site.configOf({ logSpoolMaxBytes: 2 * MiB });
  site.gateway.ackLogs = () => undefined;
  const child = site.start({ flags: ["--config", config] });
  const memory = watchMemory(child.pid!);
  await site.publish(flood());
  await ended(4);
  expect(site.outcomes()).toMatchObject([{ status: "failed", exitCode: 4, logBytes: BYTES }]);
  const peaks = memory.peaksMb();
  const silenceMs = longestSilenceMs();
  const spoolBytes = Math.max(...site.gateway.heartbeats.map((beat) => Number(beat.spoolBytes)));
  // Back again, the centre is told what is there and how much is not.
  site.gateway.chunks.splice(0);
  site.gateway.ackLogs = (seqs) => ({ ackedSeq: seqs.at(-1)! });
  site.gateway.logCall?.end();
  await site.gateway.until.holds(() => Number(site.gateway.heartbeats.at(-1)!.spoolBytes) === 0);
  const sums = arrived();
  report("without a centre", { peaks, silenceMs, spoolBytes, ...sums });
  expect(sums.bytes + sums.droppedBytes).toBe(BYTES);
  expect(sums.droppedLines).toBeGreaterThan(LINES / 2);
  expect(Math.abs(sums.droppedLines - sums.droppedBytes / LINE_BYTES)).toBeLessThanOrEqual(1);
  for (const peak of peaks) expect(peak).toBeLessThan(MEMORY_MAX_MB);
  expect(silenceMs).toBeLessThan(LATE_MAX_MS);
}, 600_000);
