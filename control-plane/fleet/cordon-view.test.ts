import { expect, test } from "vitest";
import type { Cordon } from "./agent-record.ts";
import { cordonView, type LastWord } from "./cordon-view.ts";

const REVISION = 5;
const cordoned: Cordon = { by: "ana", reason: "disk change", atMs: 1, drain: null };
const drained: Cordon = { ...cordoned, drain: { deadlineMs: null, once: false } };
const word = (change: Partial<LastWord> = {}): LastWord => ({
  cordonRevision: REVISION,
  notTakingWork: "cordoned",
  held: 0,
  ...change,
});

test.each<[string, Cordon, LastWord | undefined, string, number | null]>([
  ["an agent that was never seen", drained, undefined, "not-heard", null],
  ["one that knows", cordoned, word({ held: 2 }), "cordoned", 2],
  ["one that still holds something", drained, word({ held: 2 }), "draining", 2],
  ["one that holds nothing any more", drained, word(), "drained", 0],
  // It may be taking work at this moment, whatever it held when it spoke last.
  ["one that knows of an earlier cordon", drained, word({ cordonRevision: REVISION - 1 }), "not-heard", 0],
  [
    "one that knows of a later word than the record",
    drained,
    word({ cordonRevision: REVISION + 1 }),
    "not-heard",
    0,
  ],
  ["one of an older release that takes no work", drained, word({ cordonRevision: 0 }), "drained", 0],
  ["one of an older release", drained, word({ cordonRevision: 0, notTakingWork: "" }), "not-heard", 0],
])("%s", (_, cordon, last, state, left) => {
  expect(cordonView({ cordon, cordonRevision: REVISION }, last)).toEqual({ ...cordon, state, left });
});

test("an agent that may take work shows none", () => {
  expect(cordonView({ cordon: null, cordonRevision: REVISION }, word())).toBeNull();
});
