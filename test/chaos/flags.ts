/** The flags of `npm run chaos`. */
import { parseArgs } from "node:util";
import { z } from "zod";
import { FAULT_KINDS } from "./faults.ts";
import { NETWORKS } from "./network.ts";
import { PLANTS } from "./workload.ts";

const LINE_MAX = 110;
const INDENT = " ".repeat(26);
const SITES_MAX = 6;

const count = (max: number) => z.coerce.number().int().min(1).max(max);

const Flags = z.object({
  minutes: z.coerce.number().positive().max(100_000).default(5),
  seed: z.coerce.number().int().min(0).max(Number.MAX_SAFE_INTEGER).default(1),
  network: z.enum(NETWORKS).optional(),
  replicas: count(9).default(3),
  nats: z.enum(["1", "3", "5"]).default("3").transform(Number),
  sites: count(SITES_MAX).default(3),
  runs: count(1_000).default(8),
  every: count(3_600_000).default(2_000),
  concurrent: count(100).default(3),
  only: z
    .string()
    .default(FAULT_KINDS.join(","))
    .transform((text) => text.split(",").map((name) => name.trim()))
    .pipe(z.array(z.enum(FAULT_KINDS))),
  faketime: z.string().min(1).optional(),
  plant: z.enum(PLANTS).optional(),
  report: z.string().min(1).optional(),
  keep: z.boolean().default(false),
  /** Of the process that runs in the router: who opened it, and the secrets of its plant. */
  inside: count(2 ** 31).optional(),
  authority: z.string().optional(),
});
type Flags = z.infer<typeof Flags>;

export const HELP = `Usage: npm run chaos -- [flags]

Starts replicas, a NATS cluster and agents on several sites, breaks them as the seed says, heals them, and compares what
the product tells of the runs with what the steps themselves wrote down. The last line is a summary; the exit status is
1 when anything was found, 2 when a flag is wrong.

Flags (default)
  --minutes M             how long things are broken (5)
  --seed N                which faults come when (1); the processes themselves are scheduled by the machine
  --network NAME          namespaces: hosts of their own with links between them; needs root, iproute2 and nftables
                          proxy: one proxy on loopback, which loses no packets
                          (namespaces where that works)
  --replicas N            (3)
  --nats N                servers of the cluster: 1, 3 or 5 (3)
  --sites N               two agents on each (3)
  --runs N                at the same time (8)
  --every MS              between the begins of two faults, on average (2000)
  --concurrent N          faults at the same time (3)
  --only KINDS            these kinds of faults alone, with commas between them:
${kindsInLines()}
  --faketime FILE         libfaketime's library, for clocks that jump (where Debian's package has it)
  --plant BUG             has steps misbehave, to see that it is found:
                          ${PLANTS.join(", ")}
  --report FILE           the report, HTML; beside it a .json with all that was compared (.insitu/chaos/seed-N.html)
  --keep                  everyone's logs stay also when nothing was found

The nats-server binary: INSITU_NATS_SERVER, else the newest on the PATH. Clusters of Debian's 2.9.10 lose data by a
fault of their own: give a newer one.

Examples
  npm run chaos -- --minutes 10 --seed 7
  npm run chaos -- --network proxy --nats 1 --only "kill agent,kill host"
  npm run chaos -- --minutes 1 --plant once-twice
`;

/** Every fault at once. */
export function parseFlags(args: readonly string[]): Flags | "help" | { faults: string[] } {
  const options = Object.fromEntries(
    Object.keys(Flags.shape).map((name) => [name, { type: name === "keep" ? "boolean" : "string" } as const]),
  );
  try {
    const help = { type: "boolean", short: "h" } as const;
    const { values } = parseArgs({ args: [...args], options: { ...options, help } });
    if (values.help) return "help";
    const parsed = Flags.safeParse(values);
    if (parsed.success) return parsed.data;
    return { faults: parsed.error.issues.map(({ path, message }) => `--${String(path[0])}: ${message}`) };
  } catch (err) {
    return { faults: [err instanceof Error ? err.message : String(err)] };
  }
}

function kindsInLines(): string {
  const lines = [INDENT];
  for (const [i, kind] of FAULT_KINDS.entries()) {
    const piece = i === FAULT_KINDS.length - 1 ? kind : `${kind}, `;
    if (lines.at(-1)!.length + piece.length > LINE_MAX) lines.push(INDENT);
    lines[lines.length - 1] += piece;
  }
  return lines.map((line) => line.trimEnd()).join("\n");
}
