/** The pipelines that run meanwhile, and what the checker has to know of their steps. */

/** What a step may and must do. */
export interface Expectation {
  /** Where it may run. */
  sites: readonly string[];
  needs: readonly string[];
  once: boolean;
  /** Numbered lines that each finished attempt prints. */
  lines: number;
  /** Attempts that end with exit code 7 before the one that succeeds. */
  failures: number;
}
/** Pipeline, step. */
export type Expectations = Readonly<Record<string, Readonly<Record<string, Expectation>>>>;

/** Faults of the steps or of the checker's view, planted to see that they are found. */
export const PLANTS = [
  "once-twice",
  "wrong-site",
  "line-lost",
  "line-doubled",
  "outcome-unwitnessed",
] as const;
export type Plant = (typeof PLANTS)[number];

interface Shape {
  id: string;
  /** Index of its site; a step that reads data says none, and placement has to find it. */
  site: number;
  reads?: boolean;
  needs?: readonly string[];
  once?: boolean;
  failures?: number;
  keep?: boolean;
  lines?: number;
}

const JURISDICTIONS = ["DE", "FR", "US", "JP", "CA", "GB"];
const PAUSE_S = "0.05";

/** Each side effect is one line, appended in one write: `start` before the first and `end` after the last. */
const SCRIPT = `
mark() {
  printf '%s %s %s %s %s %s %s %s\\n' "$1" "$INSITU_RUN_ID" "$INSITU_STEP_ID" "$INSITU_ATTEMPT" "$INSITU_EPOCH" \\
    "$SITE" "$AGENT" "$(date +%s%3N)" >> "$JOURNAL" || exit 99
}
planted() { [ "$PLANT" = "$1" ]; }
SITE="$CHAOS_SITE"; AGENT="$CHAOS_AGENT"; JOURNAL="$CHAOS_JOURNAL"
if planted wrong-site; then SITE=elsewhere; fi
mark start
if [ "$ONCE" = yes ] && planted once-twice; then mark start; fi
i=1
while [ "$i" -le "$LINES" ]; do
  if [ "$i" -eq 2 ] && planted line-lost; then i=3; fi
  echo "line $i of $INSITU_ATTEMPT.$INSITU_EPOCH"
  if [ "$i" -eq 2 ] && planted line-doubled; then echo "line $i of $INSITU_ATTEMPT.$INSITU_EPOCH"; fi
  sleep ${PAUSE_S}
  i=$((i+1))
done
if ! planted outcome-unwitnessed; then mark end; fi
[ "$INSITU_ATTEMPT" -gt "$FAILURES" ] || exit 7
`;

const PIPELINES: Readonly<Record<string, readonly Shape[]>> = {
  chain: [
    { id: "one", site: 0 },
    { id: "two", site: 1, needs: ["one"] },
    { id: "three", site: 2, needs: ["two"] },
  ],
  fan: [
    { id: "split", site: 0, lines: 2 },
    { id: "left", site: 0, needs: ["split"], lines: 20 },
    { id: "middle", site: 1, needs: ["split"], lines: 30 },
    { id: "right", site: 2, needs: ["split"], lines: 20 },
    { id: "join", site: 1, needs: ["left", "middle", "right"], lines: 2 },
  ],
  bound: [
    { id: "read", site: 1, reads: true },
    { id: "sum", site: 2, needs: ["read"] },
  ],
  once: [
    { id: "before", site: 2, lines: 2 },
    { id: "pay", site: 0, needs: ["before"], once: true, lines: 20 },
    { id: "after", site: 1, needs: ["pay"], lines: 2 },
  ],
  flaky: [
    { id: "shaky", site: 2, failures: 2, lines: 4 },
    { id: "then", site: 0, needs: ["shaky"], lines: 4 },
  ],
  kept: [{ id: "long", site: 1, keep: true, lines: 80 }],
};
export const PIPELINE_NAMES = Object.keys(PIPELINES);
export const DATASET = "rows";

/** With fewer than three sites, steps share them. */
function siteOf(step: Shape, sites: readonly string[]): string {
  return sites[step.site % sites.length]!;
}

export function expectations(sites: readonly string[]): Expectations {
  const expected: Record<string, Record<string, Expectation>> = {};
  for (const [pipeline, steps] of Object.entries(PIPELINES)) {
    expected[pipeline] = {};
    for (const step of steps) {
      expected[pipeline][step.id] = {
        sites: [siteOf(step, sites)],
        needs: step.needs ?? [],
        once: step.once ?? false,
        lines: step.lines ?? 10,
        failures: step.failures ?? 0,
      };
    }
  }
  return expected;
}

/** Documents for `POST /v1/apply`. */
export function documents(sites: readonly string[], plant?: Plant): unknown[] {
  const environments = sites.map((name, i) => ({
    kind: "environment",
    name,
    jurisdiction: JURISDICTIONS[i % JURISDICTIONS.length],
  }));
  const holder = siteOf({ id: "", site: 1 }, sites);
  const dataset = {
    kind: "dataset",
    name: DATASET,
    owner: "registry",
    classification: "internal",
    residency: [environments.find(({ name }) => name === holder)!.jurisdiction],
    environments: [holder],
  };
  const pipelines = Object.entries(PIPELINES).map(([name, steps]) => ({
    kind: "pipeline",
    name,
    params: { key: { type: "string" } },
    steps: steps.map((step) => ({
      id: step.id,
      run: ["sh", "-c", SCRIPT],
      env: {
        LINES: String(step.lines ?? 10),
        FAILURES: String(step.failures ?? 0),
        ONCE: step.once ? "yes" : "no",
        PLANT: plant ?? "",
      },
      ...(step.needs ? { needs: step.needs } : {}),
      ...(step.reads ? { reads: [DATASET] } : { environment: siteOf(step, sites) }),
      ...(step.once ? { once: true } : {}),
      ...(step.keep ? { disconnect: { keep: "30s", then: "reassign" } } : {}),
      ...(step.failures ? { retries: { max: step.failures + 1, backoff: "200ms" } } : {}),
    })),
  }));
  return [...environments, dataset, ...pipelines];
}
