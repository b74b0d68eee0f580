/** A short run of `npm run sim`, and the bugs that it has to find. */
import { describe, expect, test } from "vitest";
import { BUGS } from "./bug.ts";
import { simulate } from "./world.ts";

const WORLDS = 400;
const FOUND_WITHIN = 200;
/** Some seconds of work, and many times that on a machine that is busy with others. */
const LIMIT_MS = 300_000;

test(
  `${WORLDS} worlds: nothing acknowledged is lost, nothing committed twice, every run ends`,
  async () => {
    const broken: unknown[] = [];
    let events = 0;
    for (let seed = 1; seed <= WORLDS; seed++) {
      const verdict = await simulate({ seed });
      if (verdict.violation) broken.push(verdict);
      events += verdict.events;
    }
    expect(broken).toEqual([]);
    expect(events).toBeGreaterThan(WORLDS * 100);
  },
  LIMIT_MS,
);

test("the same seed gives the same world again, event by event", async () => {
  const play = async (): Promise<string[]> => {
    const lines: string[] = [];
    await simulate({ seed: 7, trace: (line) => lines.push(line) });
    return lines;
  };
  const first = await play();
  expect(first.length).toBeGreaterThan(10);
  expect(await play()).toEqual(first);
});

describe("a planted bug is found", () => {
  test.each(BUGS)(
    "%s",
    async (bug) => {
      let found = false;
      for (let seed = 1; seed <= FOUND_WITHIN && !found; seed++) {
        const { violation } = await simulate({ seed, bug });
        // Found by what it does: the same world without it holds.
        found = violation !== undefined && !(await simulate({ seed })).violation;
      }
      expect(found).toBe(true);
    },
    LIMIT_MS,
  );
});
