import { afterEach, beforeEach, expect, test } from "vitest";
import { InsituError } from "../../shared/errors.ts";
import { systemClock, type Timer } from "../../shared/system.ts";
import type { Cordon__Output } from "../../shared/wire/gen/insitu/agent/v1/Cordon.ts";
import { LIMITS, quiet, type TestDirectory, testDirectory } from "../agent.fixture.ts";
import { Journal } from "../journal/journal.ts";
import type { CordonState } from "./cordon.ts";
import { CordonService } from "./cordon-service.ts";

const told = (change: Partial<Cordon__Output> = {}): Cordon__Output => ({
  revision: "7",
  cordoned: true,
  by: "ana",
  reason: "disk change",
  drainDeadlineMs: "0",
  drainOnce: false,
  ...change,
});

let directory: TestDirectory;
let journal: Journal;
let nowMs = 0;
let deadlines: { once: boolean; message: string }[] = [];
const changes: (() => void)[] = [];
/** What was put off last. */
let later: { ms: number; run: () => void } | undefined;
let refuseWrites = false;

beforeEach(() => {
  directory = testDirectory();
  journal = new Journal(directory.path, LIMITS);
  nowMs = 1_000;
  deadlines = [];
  later = undefined;
  refuseWrites = false;
});

afterEach(async () => {
  await journal.close();
  directory[Symbol.dispose]();
});

function open(): CordonService {
  const after = (ms: number, run: () => void): Timer => {
    const put = { ms, run };
    later = put;
    const cancel = (): void => {
      if (later === put) later = undefined;
    };
    return { cancel };
  };
  return new CordonService({
    clock: { ...systemClock, after },
    log: quiet,
    store: {
      cordon: () => journal.cordon(),
      keepCordon: (state: CordonState) =>
        refuseWrites
          ? Promise.reject(new InsituError("store.unavailable", "full"))
          : journal.keepCordon(state),
    },
    centreNowMs: () => nowMs,
    onChange: () => {
      for (const change of changes.splice(0)) change();
    },
    onDeadline: (options) => deadlines.push(options),
  });
}

const nextChange = (): Promise<void> => new Promise((resolve) => changes.push(resolve));

async function durable(cordon: CordonService, revision: number): Promise<void> {
  while (cordon.revision < revision) await nextChange();
}

test("what the control plane said last holds at once, and over a restart; it is told back when it is on disk", async () => {
  const cordon = open();
  expect([cordon.cordoned, cordon.revision]).toEqual([false, 0]);
  cordon.hear(told());
  expect([cordon.cordoned, cordon.revision]).toEqual([true, 0]);
  await durable(cordon, 7);
  await journal.close();
  journal = new Journal(directory.path, LIMITS);
  const next = open();
  expect([next.cordoned, next.revision]).toEqual([true, 7]);
  next.hear(told({ revision: "8", cordoned: false }));
  expect(next.cordoned).toBe(false);
});

test("what is older than what is known changes nothing, nor does a control plane that says nothing of it", async () => {
  const cordon = open();
  cordon.hear(told({ revision: "9" }));
  await durable(cordon, 9);
  cordon.hear(told({ revision: "8", cordoned: false }));
  cordon.hear(null);
  expect([cordon.cordoned, cordon.revision]).toEqual([true, 9]);
});

test("a cordon that cannot be written holds all the same, and is written when it is heard again", async () => {
  const cordon = open();
  refuseWrites = true;
  cordon.hear(told());
  await new Promise((resolve) => setImmediate(resolve));
  expect([cordon.cordoned, cordon.revision, journal.cordon()]).toEqual([true, 0, undefined]);
  refuseWrites = false;
  cordon.hear(told());
  await durable(cordon, 7);
  expect(journal.cordon()).toMatchObject({ revision: 7, cordoned: true, by: "ana" });
});

test("at the deadline of a drain what runs is ended, by the clock of the control plane and also after a restart", async () => {
  const cordon = open();
  cordon.hear(told({ drainDeadlineMs: "3000", drainOnce: true }));
  expect(later?.ms).toBe(2_000);
  later!.run(); // too early by that clock, which was set meanwhile
  expect(deadlines).toEqual([]);
  nowMs = 3_000;
  later!.run();
  const message = "the agent was drained by ana: disk change; the deadline for what still ran has passed";
  expect(deadlines).toEqual([{ once: true, message }]);
  await durable(cordon, 7);
  open().start();
  expect(deadlines).toHaveLength(2);
});

test.each([
  ["an uncordon", { revision: "8", cordoned: false, drainDeadlineMs: "3000" }],
  ["a cordon alone", { revision: "8", drainDeadlineMs: "0" }],
])("%s calls a drain off", (_, change) => {
  const cordon = open();
  cordon.hear(told({ drainDeadlineMs: "3000" }));
  cordon.hear(told(change));
  expect(later).toBeUndefined();
});
