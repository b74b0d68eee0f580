/**
 * `npm run bench`: the floors, then the product, in one run on one machine; ratios are what counts.
 *
 *   npm run bench [-- -o json] [--quick]
 */
import { readFileSync } from "node:fs";
import { cpus, totalmem } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { connect } from "nats";
import { startTestNats } from "../support/nats.ts";
import { Plant } from "../support/plant.ts";
import { measureBoxes } from "./boxes.ts";
import { CHAIN, chain, hops } from "./chain.ts";
import { measureFailover } from "./failover.ts";
import { type Floors, measureFloors } from "./floors.ts";
import { measureIdleAgent } from "./idle-agent.ts";
import { measureLogs, writesLines } from "./logs.ts";
import { measureOnePort } from "./one-port.ts";
import { median, percentile } from "./statistics.ts";

interface Budget {
  name: string;
  value: number;
  unit: string;
  limit: number;
  met: boolean;
  note: string;
}

const { values } = parseArgs({
  options: {
    output: { type: "string", short: "o", default: "table" },
    quick: { type: "boolean", default: false },
  },
});
const json = values.output === "json";
const say = (line: string): void => void process.stderr.write(`${line}\n`);

const FAN = values.quick ? 1_000 : 10_000;
const LINES = values.quick ? 300_000 : 1_000_000;

function fan(name: string, width: number) {
  return {
    kind: "pipeline",
    name,
    steps: Array.from({ length: width }, (_, i) => ({ id: `s${i}`, environment: "bench", uses: "noop" })),
  };
}

async function floors(): Promise<Floors> {
  await using nats = await startTestNats();
  const connection = await connect({ servers: nats.url, user: nats.user, pass: nats.password });
  try {
    return await measureFloors(connection);
  } finally {
    await connection.close();
  }
}

async function measure(): Promise<{ floors: Floors; budgets: Budget[]; extra: Record<string, number> }> {
  say("floors: raw JetStream rounds, gRPC echo …");
  const floor = await floors();
  const budgets: Budget[] = [];
  const add = (
    name: string,
    value: number,
    unit: string,
    limit: number,
    atMost: boolean,
    note = "",
  ): void => {
    budgets.push({ name, value, unit, limit, met: atMost ? value <= limit : value >= limit, note });
  };
  say("a process that does nothing, plain and boxed …");
  const boxes = await measureBoxes(values.quick ? 30 : 150);
  if (typeof boxes === "string") say(`no box on this host: ${boxes}`);
  else
    add(
      "a box around a process that does nothing, p50",
      boxes.boxedMs - boxes.plainMs,
      "ms",
      20,
      true,
      `plain ${boxes.plainMs.toFixed(2)} ms, boxed ${boxes.boxedMs.toFixed(2)} ms, ${boxes.memory}`,
    );
  say("an idle agent with a site's policy (two minutes) …");
  const idle = await measureIdleAgent(join(process.cwd(), "dist"));
  const evaluator = `${idle.askedMiB.toFixed(0)} MiB while it is asked; first offer ${idle.coldMs.toFixed(0)} ms, next ${idle.warmMs.toFixed(0)} ms`;
  add("an idle agent, its policy loaded", idle.idleMiB, "MiB", 110, true, evaluator);
  await using plant = new Plant({ dist: join(process.cwd(), "dist"), env: { INSITU_LOG_LEVEL: "warn" } });
  await plant.startServer();
  await plant.apply(
    { kind: "environment", name: "bench", jurisdiction: "DE" },
    chain("chain-noop", { uses: "noop" }),
    chain("chain-process", { run: ["true"] }),
    fan("fan-1000", 1_000),
    fan("fan", FAN),
    {
      kind: "pipeline",
      name: "lines",
      steps: [{ id: "write", environment: "bench", ...writesLines(LINES) }],
    },
  );
  await plant.startAgent("bench", "one", ["--slots", "4"]);

  say("40 sequential no-op steps, one agent …");
  const rounds = values.quick ? 5 : 15;
  const noop: number[] = [];
  const noopHops: number[] = [];
  for (let i = 0; i < rounds + 2; i++) {
    const followed = await plant.follow("chain-noop");
    if (i < 2) continue; // warm-up
    noop.push(followed.wallMs);
    noopHops.push(...hops(followed.events));
  }
  say("40 sequential processes, one agent …");
  const processes: number[] = [];
  for (let i = 0; i < (values.quick ? 3 : 7); i++)
    processes.push((await plant.follow("chain-process")).wallMs);

  const meanHopMs = median(noop) / CHAIN;
  add(
    "upstream finished → downstream started, p50",
    percentile(noopHops, 50),
    "ms",
    8,
    true,
    "no-op, one agent",
  );
  add(
    "upstream finished → downstream started, p99",
    percentile(noopHops, 99),
    "ms",
    40,
    true,
    "no-op, one agent",
  );
  add(
    "a hop, in raw rounds",
    meanHopMs / floor.rawRound.p50Ms,
    "×",
    15,
    true,
    `mean hop ${meanHopMs.toFixed(2)} ms`,
  );
  add("40 sequential steps, processes", median(processes) / 1_000, "s", 1.0, true, "submit to done, median");
  add("40 sequential steps, no-op", median(noop) / 1_000, "s", 0.4, true, "submit to done, median");

  say("a step that writes lines …");
  await measureLogs(plant, "lines", LINES);
  const lineRates: number[] = [];
  for (let i = 0; i < (values.quick ? 1 : 3); i++) lineRates.push(await measureLogs(plant, "lines", LINES));
  add(
    "log lines taken in, stored and readable",
    median(lineRates),
    "1/s",
    200_000,
    false,
    `${LINES} of one step, signed, until a reader who follows has them`,
  );

  say("fan-out over four agents …");
  for (const name of ["two", "three", "four"]) await plant.startAgent("bench", name, ["--slots", "64"]);
  const rates: number[] = [];
  await plant.follow("fan-1000");
  const small = await plant.follow("fan-1000");
  for (let i = 0; i < (values.quick ? 1 : 3); i++)
    rates.push(FAN / ((await plant.follow("fan")).wallMs / 1_000));
  const rate = median(rates);
  add(
    "steps a second, no-op, 4 agents",
    rate,
    "1/s",
    floor.rawRoundsPerSecond / 12,
    false,
    `1/${(floor.rawRoundsPerSecond / rate).toFixed(1)} of raw rounds`,
  );
  const perStep = { small: small.wallMs / 1_000, large: 1_000 / rate };
  add(`fan-out of ${FAN}: cost of a step against 1,000`, perStep.large / perStep.small, "×", 1.3, true);

  say("a replica joins, and is killed, under 24 runs …");
  const failover = await measureFailover(join(process.cwd(), "dist"));
  add("a replica joins: longest pause of a run", failover.joinPauseMs / 1_000, "s", 1, true, "one NATS");
  add(
    "a replica is killed: decided elsewhere after",
    failover.elsewhereMs / 1_000,
    "s",
    5,
    true,
    `the slowest of ${failover.takenOver} runs`,
  );
  say("hops with NATS on a port of its own and on the gateway's, in turns …");
  const hopMs = await measureOnePort(values.quick ? 5 : 15);
  const extra = {
    meanHopMs,
    hopP50DirectMs: hopMs.direct.p50,
    hopP50SecuredMs: hopMs.secured.p50,
    hopP50OnePortMs: hopMs.onePort.p50,
  };
  return { floors: floor, budgets, extra };
}

function machine() {
  const [cpu] = cpus();
  const kernel = readFileSync("/proc/sys/kernel/osrelease", "utf8").trim();
  return {
    cpu: cpu?.model ?? "",
    cores: cpus().length,
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    node: process.version,
    kernel,
  };
}

const result = { machine: machine(), ...(await measure()) };
if (json) process.stdout.write(`${JSON.stringify(result, null, 2)}\n`);
else print(result);

function print({ machine: facts, floors: floor, budgets }: typeof result): void {
  const out: string[] = [];
  out.push(
    `machine   ${facts.cpu}, ${facts.cores} cores, ${facts.memoryGiB} GiB, Node ${facts.node}, Linux ${facts.kernel}`,
  );
  out.push(
    `floors    raw JetStream round p50 ${floor.rawRound.p50Ms.toFixed(2)} / p99 ${floor.rawRound.p99Ms.toFixed(2)} ms`,
  );
  out.push(`          ${Math.round(floor.rawRoundsPerSecond)} raw rounds a second, many in flight`);
  out.push(
    `          gRPC echo p50 ${floor.grpcEcho.p50Ms.toFixed(2)} / p99 ${floor.grpcEcho.p99Ms.toFixed(2)} ms`,
    "",
  );
  const width = Math.max(...budgets.map(({ name }) => name.length));
  for (const { name, value, unit, limit, met, note } of budgets) {
    const figure = (n: number): string => (n >= 100 ? String(Math.round(n)) : n.toFixed(2));
    out.push(
      `${met ? "✓" : "✗"} ${name.padEnd(width)}  ${figure(value).padStart(8)} ${unit.padEnd(3)}  budget ${figure(limit)} ${unit}  ${note}`,
    );
  }
  process.stdout.write(`${out.join("\n")}\n`);
}
