/** `npm run chaos`: its flags, its exit status, and what it prints. */
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { findNatsServer } from "../../scripts/find-nats-server.mjs";
import { type ChaosOptions, chaos, type Verdict } from "./chaos.ts";
import { closeRouter, runInRouter } from "./enter.ts";
import { HELP, parseFlags } from "./flags.ts";
import { counts } from "./history.ts";
import { sweep } from "./leftovers.ts";
import { whyNoNamespaces } from "./namespaces.ts";
import { pressureLine } from "./pressure.ts";
import { reportOf } from "./report.ts";

const SHOWN_MAX = 40;

process.exitCode = await main();

async function main(): Promise<number> {
  const flags = parseFlags(process.argv.slice(2));
  if (flags === "help") {
    console.log(HELP);
    return 0;
  }
  if ("faults" in flags) {
    console.error(`${flags.faults.join("\n")}\nnpm run chaos -- --help tells the flags`);
    return 2;
  }
  const { inside, authority } = flags;
  if (inside === undefined) {
    const swept = sweep();
    if (swept.length > 0) console.log(`removed what an earlier run left: ${swept.join(", ")}`);
  }
  if (inside === undefined && flags.network !== "proxy") {
    const reason = whyNoNamespaces();
    if (reason === undefined) return await runInRouter(process.argv.slice(1));
    if (flags.network === "namespaces") {
      console.error(`${reason}; --network proxy needs none of it`);
      return 2;
    }
    console.log(`network: proxy (${reason})`);
  }
  const stop = new AbortController();
  for (const name of ["SIGINT", "SIGTERM"] as const)
    process.once(name, () => stop.abort(new Error(`stopped by ${name}`)));
  if (inside !== undefined) {
    process.once("disconnect", () => stop.abort(new Error("stopped: who opened the router is gone")));
    process.channel?.unref();
    console.log("network: namespaces");
  }
  const report = resolve(flags.report ?? join(".insitu", "chaos", `seed-${flags.seed}.html`));
  const options: ChaosOptions = {
    dist: fileURLToPath(new URL("..", import.meta.url)),
    natsBinary: (await findNatsServer()).path,
    replicas: flags.replicas,
    nats: flags.nats,
    sites: flags.sites,
    agentsPerSite: 2,
    kinds: flags.only,
    plant: flags.plant,
    clockLibrary: flags.faketime,
    namespaces: inside === undefined ? undefined : { pid: inside, authority: authority! },
    seed: flags.seed,
    durationMs: flags.minutes * 60_000,
    meanMs: flags.every,
    concurrentMax: flags.concurrent,
    width: flags.runs,
    say: (line) => console.log(line),
    keepLogs: flags.keep ? "always" : "when something was found",
    signal: stop.signal,
  };
  try {
    return tell(await chaos(options), report, flags.minutes);
  } catch (err) {
    if (!stop.signal.aborted) throw err;
    console.error(stop.signal.reason.message);
    return 1;
  } finally {
    // Who opened the router closes it; where nobody is left to do that, we do.
    if (process.connected) process.disconnect();
    else if (inside !== undefined) closeRouter(inside, authority!);
  }
}

function tell(verdict: Verdict, report: string, minutes: number): number {
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
