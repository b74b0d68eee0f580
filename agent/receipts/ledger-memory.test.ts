import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pino } from "pino";
import { afterEach, beforeEach, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { TestLog } from "../../test/support/test-ledger.ts";
import { type TestDirectory, testDirectory } from "../agent.fixture.ts";
import { LedgerMemory } from "./ledger-memory.ts";

let directory: TestDirectory;
let nowMs = 0;
let errors: string[] = [];
let ledger: TestLog;
beforeEach(() => {
  directory = testDirectory();
  errors = [];
  ledger = new TestLog();
});
afterEach(() => directory[Symbol.dispose]());

const clock = { ...systemClock, monotonicMs: () => nowMs };
const log = pino(
  { level: "error" },
  { write: (line) => errors.push((JSON.parse(line) as { what: string }).what) },
);
const file = (): string => join(directory.path, "ledger.json");
const memory = (): LedgerMemory => new LedgerMemory({ file: file(), clock, log });
const kept = () =>
  JSON.parse(readFileSync(file(), "utf8")) as { held: { note: string }; contradiction: unknown };

test("the newest checkpoint that extends the one before is remembered, over restarts", () => {
  const first = memory();
  expect(first.ask()).toEqual({ size: 0, trouble: "" });
  first.shown(ledger.grow(3).shown(0));
  first.shown(ledger.grow(4).shown(3));
  const again = memory();
  expect(again.ask()).toEqual({ size: 7, trouble: "" });
  again.shown(ledger.grow(1).shown(7));
  expect(memory().ask()?.size).toBe(8);
  expect(errors).toEqual([]);
});

test("it asks until it is answered, then once in a while, and at once after a new connection", () => {
  const one = memory();
  expect(one.ask()).toBeDefined();
  expect(one.ask()).toBeDefined();
  one.shown(ledger.grow(1).shown(0));
  expect(one.ask()).toBeUndefined();
  one.connected();
  expect(one.ask()).toBeDefined();
  one.shown(ledger.shown(1));
  expect(one.ask()).toBeUndefined();
  nowMs += 60_000;
  expect(one.ask()).toBeDefined();
});

test.each<[string, (memory: LedgerMemory) => void, RegExp]>([
  [
    "was rewritten",
    (m) => m.shown(new TestLog(ledger).grow(9, "other").shown(5)),
    /does not begin with the 5/,
  ],
  [
    "is another one of the same size",
    (m) => m.shown(new TestLog(ledger).grow(5, "other").shown(5)),
    /two ledgers of 5 leaves/,
  ],
  ["has another key", (m) => m.shown(new TestLog().grow(9).shown(5)), /another one than before/],
  ["is not signed", (m) => m.shown({ ...ledger.grow(1).shown(5), note: "x" }), /does not verify/],
  [
    "comes without its proof",
    (m) => m.shown({ ...ledger.grow(2).shown(5), proof: [] }),
    /does not begin with the 5/,
  ],
])(
  "a ledger that %s is told, once, in every heartbeat, and over restarts; the old checkpoint stays",
  (_, change, what) => {
    const one = memory();
    one.shown(ledger.grow(5).shown(0));
    const { note } = kept().held;
    change(one);
    change(one);
    expect(errors).toEqual([expect.stringMatching(what)]);
    expect(kept()).toMatchObject({ held: { note }, contradiction: { what: expect.stringMatching(what) } });
    for (let i = 0; i < 3; i++) expect(one.ask()).toEqual({ size: 5, trouble: expect.stringMatching(what) });
    expect(memory().ask()).toEqual({ size: 5, trouble: expect.stringMatching(what) });
  },
);

test("a shorter ledger may be that of a replica that is late; after a minute it is one that was put back", () => {
  const one = memory();
  const late = ledger.grow(3).shown(0);
  one.shown(ledger.grow(2).shown(0));
  one.shown(late);
  expect(one.ask()).toEqual({ size: 5, trouble: "" });
  nowMs += 59_000;
  one.shown(late);
  expect(errors).toEqual([]);
  nowMs += 1_000;
  one.shown(late);
  expect(errors).toEqual(["the ledger has 3 leaves, and had 5"]);
  // The whole one is back.
  one.shown(ledger.grow(1).shown(5));
  expect(memory().ask()).toEqual({ size: 6, trouble: "" });
});

test("a file that is damaged is kept aside, and said", () => {
  writeFileSync(file(), "{");
  expect(memory().ask()).toEqual({ size: 0, trouble: "" });
  expect(errors).toHaveLength(1);
  expect(existsSync(`${file()}.damaged`)).toBe(true);
});
