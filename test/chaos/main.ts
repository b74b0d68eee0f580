/**
 * `npm run chaos -- [--minutes M] [--seed N]`, and
 *
 *   --replicas N --nats 1|3|5 --sites N   who takes part; two agents on each site
 *   --every MS --concurrent N             between the begins of two faults on average; faults at the same time
 *   --only "kill agent,cut"               these kinds of faults alone
 *   --runs N                              runs at the same time
 *   --network namespaces|proxy            where parties meet: hosts of their own with links between them (root, ip,
 *                                         nft, tc), the default where that works; or one proxy on loopback
 *   --faketime FILE                       libfaketime's library, for clocks that jump; found where Debian keeps it
 *   --plant BUG                           steps misbehave, to see that it is found
 *   --keep                                everyone's logs stay also when nothing was found
 *   --report FILE                         beside it a .json with everything that was compared
 *
 * The last line is a summary; the exit status is not zero when anything failed.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { findNatsServer } from "../../scripts/find-nats-server.mjs";
import { type ChaosOptions, chaos, type Verdict } from "./chaos.ts";
import { closeRouter, runInRouter } from "./enter.ts";
import { FAULT_KINDS, type FaultKind } from "./faults.ts";
import { counts } from "./history.ts";
import { sweep } from "./leftovers.ts";
import { whyNoNamespaces } from "./namespaces.ts";
import { NETWORKS } from "./network.ts";
import { pressureLine } from "./pressure.ts";
import { reportOf } from "./report.ts";
import { PLANTS } from "./workload.ts";

const SHOWN_MAX = 40;

process.exitCode = await main();

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      minutes: { type: "string", default: "5" },
      seed: { type: "string", default: "1" },
      replicas: { type: "string", default: "3" },
      nats: { type: "string", default: "3" },
      sites: { type: "string", default: "3" },
      every: { type: "string", default: "2000" },
      concurrent: { type: "string", default: "3" },
      runs: { type: "string", default: "8" },
      only: { type: "string" },
      plant: { type: "string" },
      report: { type: "string" },
      faketime: { type: "string" },
      network: { type: "string" },
      keep: { type: "boolean", default: false },
      // Of the process that runs in the router: who opened it, and the secrets of its plant.
      inside: { type: "string" },
      authority: { type: "string" },
    },
  });
  const number = (
    name: "minutes" | "seed" | "replicas" | "nats" | "sites" | "every" | "concurrent" | "runs",
  ) => Number(values[name]);
  const plant = PLANTS.find((name) => name === values.plant);
  const only = values.only?.split(",").map((name) => name.trim());
  const kinds = FAULT_KINDS.filter((kind) => only === undefined || only.includes(kind));
  const faults = [
    ...(number("minutes") > 0 ? [] : ["--minutes takes a number above 0"]),
    ...(Number.isSafeInteger(number("seed")) && number("seed") >= 0
      ? []
      : ["--seed takes a whole number from 0"]),
    ...(values.plant === undefined || plant ? [] : [`--plant takes one of ${PLANTS.join(", ")}`]),
    ...(kinds.length > 0 && (only ?? []).every((name) => kinds.includes(name as FaultKind))
      ? []
      : [`--only takes some of: ${FAULT_KINDS.join(", ")}`]),
    ...([1, 3, 5].includes(number("nats")) ? [] : ["--nats takes 1, 3 or 5"]),
    ...(values.network === undefined || NETWORKS.some((name) => name === values.network)
      ? []
      : [`--network takes one of ${NETWORKS.join(", ")}`]),
  ];
  if (faults.length > 0) {
    console.error(faults.join("\n"));
    return 2;
  }
  if (values.inside === undefined) {
    const swept = sweep();
    if (swept.length > 0) console.log(`removed what an earlier run left: ${swept.join(", ")}`);
  }
  if (values.inside === undefined && values.network !== "proxy") {
    const reason = whyNoNamespaces();
    if (reason === undefined) return await runInRouter(process.argv.slice(1));
    if (values.network === "namespaces") {
      console.error(`${reason}; --network proxy needs none of it`);
      return 2;
    }
    console.log(`network: proxy (${reason})`);
  }
  const stop = new AbortController();
  for (const name of ["SIGINT", "SIGTERM"] as const)
    process.once(name, () => stop.abort(new Error(`stopped by ${name}`)));
  if (values.inside !== undefined) {
    process.once("disconnect", () => stop.abort(new Error("stopped: who opened the router is gone")));
    process.channel?.unref();
    console.log("network: namespaces");
  }
  const report = resolve(values.report ?? join(".insitu", "chaos", `seed-${values.seed}.html`));
  const options: ChaosOptions = {
    dist: fileURLToPath(new URL("..", import.meta.url)),
    natsBinary: (await findNatsServer()).path,
    replicas: number("replicas"),
    nats: number("nats"),
    sites: number("sites"),
    agentsPerSite: 2,
    kinds,
    plant,
    clockLibrary: values.faketime,
    namespaces:
      values.inside === undefined ? undefined : { pid: Number(values.inside), authority: values.authority! },
    seed: number("seed"),
    durationMs: number("minutes") * 60_000,
    meanMs: number("every"),
    concurrentMax: number("concurrent"),
    width: number("runs"),
    say: (line) => console.log(line),
    keepLogs: values.keep ? "always" : "when something was found",
    signal: stop.signal,
  };
  try {
    return tell(await chaos(options), report, values.minutes);
  } catch (err) {
    if (!stop.signal.aborted) throw err;
    console.error(stop.signal.reason.message);
    return 1;
  } finally {
    // Who opened the router closes it; where nobody is left to do that, we do.
    if (process.connected) process.disconnect();
    else if (values.inside !== undefined) closeRouter(Number(values.inside), values.authority!);
  }
}

function tell(verdict: Verdict, report: string, minutes: string): number {
  const { violations, faults, history, seed, ends, network } = verdict;
  const summary = `chaos: seed ${seed}, ${minutes} min, ${network}, ${faults.length} faults, ${history.runs.length} runs, ${violations.length} violations`;
  mkdirSync(dirname(report), { recursive: true });
  writeFileSync(report, reportOf(verdict, summary));
  writeFileSync(`${report.replace(/\.html$/, "")}.json`, JSON.stringify(verdict));
  for (const { kind, runId, message } of violations.slice(0, SHOWN_MAX))
    console.log(`violation: ${kind}: run ${runId}: ${message}`);
  if (violations.length > SHOWN_MAX) console.log(`and ${violations.length - SHOWN_MAX} more`);
  for (const {
    kind,
    faults: count,
    medianMs,
    worstMs,
    decisionMedianMs,
    decisionWorstMs,
  } of verdict.recoveries) {
    const ended = `next run ended after ${told(medianMs)} (median), ${told(worstMs)} (worst)`;
    const decided = `; next decision after ${told(decisionMedianMs)}, ${told(decisionWorstMs)}`;
    console.log(`${kind}: ${count} times, ${ended}${decisionMedianMs === null ? "" : decided}`);
  }
  for (const { name, how } of ends) console.log(`${name} ended by itself: ${how}`);
  for (const { kind, reason } of verdict.skipped) console.log(`not done: ${kind}: ${reason}`);
  const late = pressureLine(verdict.pressure);
  if (late !== "") console.log(late);
  console.log(
    `found: ${counts(violations)
      .map(([kind, count]) => `${kind} ${count}`)
      .join(", ")}`,
  );
  console.log(`report: ${report}`);
  console.log(summary);
  return violations.length > 0 ? 1 : 0;
}

function told(ms: number | null): string {
  return ms === null ? "never" : `${(ms / 1_000).toFixed(1)} s`;
}
