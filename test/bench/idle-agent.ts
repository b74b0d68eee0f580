/** What an agent takes of its host's memory while nothing runs, with a site's policy that has a Cedar part. */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { systemClock } from "../../shared/system.ts";
import { Plant } from "../support/plant.ts";

export interface IdleAgent {
  /** Resident, of the agent and of every process that it has started; MiB. */
  idleMiB: number;
  /** The same right after an offer. */
  askedMiB: number;
  /** From taking one offer to its outcome, when the evaluator of the policy had to be started; ms. */
  coldMs: number;
  /** And when it was there. */
  warmMs: number;
}

const POLICY = 'version: 1\npipelines: ["*"]\nexecutors: [noop]\ncedar: more.cedar\n';
const CEDAR = `@id("baseline") permit (principal, action, resource);
@id("no-results-of-patients") forbid (principal, action, resource)
when { context.reads.contains("patients") && !context.outputs.isEmpty() };
`;
/** The evaluator ends after a minute. */
const IDLE_WITHIN_MS = 120_000;

export async function measureIdleAgent(dist: string): Promise<IdleAgent> {
  await using plant = new Plant({ dist, env: { INSITU_LOG_LEVEL: "warn" } });
  await plant.startServer();
  const step = { id: "s", environment: "bench", uses: "noop" };
  await plant.apply(
    { kind: "environment", name: "bench", jurisdiction: "DE" },
    { kind: "pipeline", name: "one", steps: [step] },
  );
  const policy = join(plant.directory, "policy.yaml");
  writeFileSync(policy, POLICY, { mode: 0o644 });
  writeFileSync(join(plant.directory, "more.cedar"), CEDAR, { mode: 0o644 });
  const { pid } = await plant.startAgent("bench", "idle", ["--site-policy", policy]);
  if (pid === undefined) throw new Error("the agent has not started");
  const rests = async (): Promise<void> => {
    const until = systemClock.monotonicMs() + IDLE_WITHIN_MS;
    while (childrenOf(pid).length > 0) {
      if (systemClock.monotonicMs() > until) throw new Error("the evaluator does not end");
      await systemClock.sleep(250);
    }
  };
  await rests();
  const coldMs = (await plant.follow("one")).wallMs;
  const warmMs = (await plant.follow("one")).wallMs;
  const askedMiB = residentMiB(pid);
  await rests();
  return { idleMiB: residentMiB(pid), askedMiB, coldMs, warmMs };
}

function childrenOf(pid: number): number[] {
  return readdirSync(`/proc/${pid}/task`).flatMap((thread) =>
    readFileSync(`/proc/${pid}/task/${thread}/children`, "utf8").split(" ").filter(Boolean).map(Number),
  );
}

function residentMiB(pid: number): number {
  const [, kib = "0"] = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8")) ?? [];
  return childrenOf(pid).reduce((sum, child) => sum + residentMiB(child), Number(kib) / 1024);
}
