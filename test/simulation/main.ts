/** `npm run sim`: see `HELP`. */
import { availableParallelism } from "node:os";
import { parseArgs } from "node:util";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { systemClock } from "../../shared/system.ts";
import { BUGS, type Bug } from "./bug.ts";
import { simulate, type Verdict, type WorldOptions } from "./world.ts";

const HELP = `Usage: npm run sim -- [flags]

Runs the deciding code in worlds of virtual time that follow from a seed: agents, replicas, a network that drops,
repeats and delays, crashes, clocks that jump. Invariants are checked after every event; then the faults end, and every
run must end too. The last line is a summary; the exit status is not zero when anything failed.

Flags (default)
  --seed N        the first world                                   (1)
  --worlds K      so many worlds, from that seed on, on all cores   (1000)
  --replicas MAX  of the control plane, at most, in a world         (3)
  --plant BUG     with a fault in it, to see that it is found: ${BUGS.join(", ")}
  --verbose       tell all that happens in the world of that seed

Examples
  npm run sim -- --worlds 10000
  npm run sim -- --seed 444 --worlds 1 --verbose
  npm run sim -- --plant accept-stale-epoch
`;
const LAST_EVENTS = 30;
const SHOWN_MAX = 10;

interface Range {
  first: number;
  count: number;
  stride: number;
  bug: Bug | undefined;
  replicasMax: number;
}

if (isMainThread) process.exitCode = await main();
else await work(workerData as Range);

async function work({ first, count, stride, bug, replicasMax }: Range): Promise<void> {
  for (let index = 0; index < count; index++) {
    parentPort!.postMessage(await simulate({ seed: first + index * stride, bug, replicasMax }));
  }
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      seed: { type: "string", default: "1" },
      worlds: { type: "string", default: "1000" },
      replicas: { type: "string", default: "3" },
      plant: { type: "string" },
      verbose: { type: "boolean", default: false },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  if (values.help) {
    console.log(HELP);
    return 0;
  }
  const [seed, worlds] = [Number(values.seed), Number(values.worlds)];
  const replicasMax = Number(values.replicas);
  if (!Number.isSafeInteger(replicasMax) || replicasMax < 1 || replicasMax > 9) {
    console.error("--replicas takes a number from 1 to 9");
    return 2;
  }
  const bug = BUGS.find((name) => name === values.plant);
  if (!Number.isSafeInteger(seed) || seed < 0 || !Number.isSafeInteger(worlds) || worlds < 1) {
    console.error("--seed takes a whole number from 0, --worlds one from 1");
    return 2;
  }
  if (values.plant !== undefined && !bug) {
    console.error(`there is no bug ${values.plant} to plant; there are: ${BUGS.join(", ")}`);
    return 2;
  }
  const startedMs = systemClock.monotonicMs();
  const verdicts: Verdict[] = values.verbose
    ? [await shown({ seed, bug, replicasMax })]
    : await onAllCores({ first: seed, count: worlds, stride: 1, bug, replicasMax });
  const failed = verdicts.filter(({ violation }) => violation).sort((a, b) => a.seed - b.seed);
  for (const verdict of failed.slice(0, values.verbose ? 0 : SHOWN_MAX))
    await explain(verdict, { bug, replicasMax });
  for (const verdict of failed.slice(values.verbose ? 0 : SHOWN_MAX)) console.log(headline(verdict));
  const sum = (of: (verdict: Verdict) => number): number => verdicts.reduce((all, one) => all + of(one), 0);
  const took = (systemClock.monotonicMs() - startedMs) / 1000;
  console.log(
    `worlds ${verdicts.length}, runs ${sum(({ runs }) => runs)}, events ${sum(({ events }) => events)}, ` +
      `virtual hours ${Math.round(sum(({ virtualMs }) => virtualMs) / 3_600_000)}, ` +
      `failures ${failed.length}, ${took.toFixed(1)} s`,
  );
  return failed.length > 0 ? 1 : 0;
}

async function shown(options: WorldOptions): Promise<Verdict> {
  const verdict = await simulate({ ...options, trace: (line) => console.log(line) });
  if (verdict.violation) console.log(`\n${headline(verdict)}`);
  return verdict;
}

/** The same seed gives the same world again: the second time it is written down. */
async function explain(verdict: Verdict, options: Omit<WorldOptions, "seed">): Promise<void> {
  const lines: string[] = [];
  const again = await simulate({ ...options, seed: verdict.seed, trace: (line) => lines.push(line) });
  console.log(headline(verdict));
  if (JSON.stringify(again) !== JSON.stringify(verdict)) console.log("  and it does not replay exactly");
  for (const line of lines.slice(-LAST_EVENTS)) console.log(`  ${line}`);
  const { bug, replicasMax } = options;
  const flags = `--replicas ${replicasMax}${bug ? ` --plant ${bug}` : ""}`;
  console.log(`  replay: npm run sim -- --seed ${verdict.seed} --worlds 1 --verbose ${flags}\n`);
}

function headline({ seed, violation }: Verdict): string {
  return `seed ${seed}: broken: ${violation!.invariant}: ${violation!.message}`;
}

async function onAllCores({ first, count, bug, replicasMax }: Range): Promise<Verdict[]> {
  const workers = Math.min(availableParallelism(), count);
  const verdicts: Verdict[] = [];
  const all = Array.from({ length: workers }, (_, index) => {
    const share = Math.ceil((count - index) / workers);
    const range: Range = { first: first + index, count: share, stride: workers, bug, replicasMax };
    return new Promise<void>((resolve, reject) => {
      const worker = new Worker(new URL(import.meta.url), { workerData: range });
      worker.on("message", (verdict: Verdict) => verdicts.push(verdict));
      worker.on("error", reject);
      worker.on("exit", (code) => {
        if (code === 0) resolve();
        else reject(new Error(`a worker ended with ${code}`));
      });
    });
  });
  await Promise.all(all);
  if (verdicts.length !== count) throw new Error(`${count - verdicts.length} worlds gave no verdict`);
  return verdicts;
}
