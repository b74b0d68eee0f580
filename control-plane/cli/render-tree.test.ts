import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { changeLines, type Frame, renderTree } from "./render-tree.ts";
import { offered, runDetail, started, stepView } from "./run-view.fixture.ts";
import { foldBatch, viewOf } from "./run-view.ts";
import { widthOf } from "./text.ts";

const frame: Frame = {
  width: 80,
  height: 23,
  nowMs: 1_001_400,
  color: false,
  connected: null,
  online: true,
};
const fresh = viewOf(runDetail([stepView("one"), stepView("two"), stepView("merge", ["one", "two"])]));

describe("the tree", () => {
  test("shows each step with sign, word, agent, time and what it waits for", () => {
    const view = foldBatch(fresh, 2, [
      offered("one", "dream"),
      started("one", "dream/a"),
      offered("two", "biscoe"),
    ]);
    expect(renderTree(view, frame)).toEqual([
      "penguins  running  0 of 3 steps  1.4 s  01m85kzyz71kqjw0z19gdzynrg",
      " ● one      running    dream/a  1.2 s",
      " ○ two      offered    biscoe",
      " ·   merge  pending                         after one, two",
    ]);
  });

  test("says when no agent of the environment is connected, and when the server is away", () => {
    const view = foldBatch(fresh, 2, [offered("two", "biscoe")]);
    const lines = renderTree(view, { ...frame, connected: new Set(["dream"]), online: false }).join("\n");
    expect(lines).toContain("no agent of biscoe is connected");
    expect(lines).toContain("The server is away");
  });

  test("says that a slot is missing when an offer is not taken for a while", () => {
    const view = foldBatch(fresh, 2, [offered("two", "biscoe")]);
    const connected = new Set(["biscoe"]);
    expect(renderTree(view, { ...frame, connected }).join("\n")).not.toContain("slot");
    const later = { ...frame, connected, nowMs: frame.nowMs + 5_000 };
    expect(renderTree(view, later).join("\n")).toContain("waits for an agent with a free slot");
  });

  test("keeps what needs attention when not all steps fit, and counts the rest", () => {
    const steps = Array.from({ length: 200 }, (_, at) => stepView(`step-${at}`, [], { status: "succeeded" }));
    steps[7] = stepView("broken", [], { status: "failed", error: { code: "exit", message: "exit code 3" } });
    steps[150] = stepView("busy", [], { status: "running" });
    const lines = renderTree(viewOf(runDetail(steps)), { ...frame, height: 6 });
    expect(lines).toHaveLength(6);
    expect(lines.join("\n")).toMatch(/broken.*exit code 3/);
    expect(lines.join("\n")).toContain("busy");
    expect(lines.at(-1)).toBe(" … 196 succeeded not shown");
  });

  test("control characters in what others wrote are shown, not sent", () => {
    const step = stepView("one", [], {
      status: "failed",
      error: { code: "exit", message: "a\u001b[2Jb\nc" },
    });
    const text = renderTree(viewOf(runDetail([step])), frame).join("\n");
    expect(text).not.toContain("\u001b");
    expect(text).toContain("a^[[2Jb · c");
  });

  test("a chain of thousands of steps does not overflow the stack", () => {
    const steps = Array.from({ length: 5_000 }, (_, at) =>
      stepView(`s${at}`, at === 0 ? [] : [`s${at - 1}`]),
    );
    expect(renderTree(viewOf(runDetail(steps.reverse())), frame)[1]).toMatch(/^ · s0 /);
  });

  test("never is wider or higher than the terminal", () => {
    const status = fc.constantFrom("pending", "running", "failed", "succeeded", "offered") as fc.Arbitrary<
      "pending" | "running" | "failed" | "succeeded" | "offered"
    >;
    const step = fc.record({ status, message: fc.string(), agent: fc.option(fc.string()) });
    fc.assert(
      fc.property(
        fc.array(step, { minLength: 1, maxLength: 60 }),
        fc.integer({ min: 4, max: 150 }),
        fc.integer({ min: 4, max: 50 }),
        fc.boolean(),
        (given, width, height, color) => {
          const steps = given.map(({ status, message, agent }, at) =>
            stepView(`step-${at}`, at > 0 ? [`step-${at - 1}`] : [], {
              status,
              agent,
              environment: "somewhere",
              error: { code: "x", message },
            }),
          );
          const lines = renderTree(viewOf(runDetail(steps)), { ...frame, width, height, color });
          expect(lines.length).toBeLessThanOrEqual(height);
          for (const line of lines) {
            expect(widthOf(line)).toBeLessThanOrEqual(width);
            expect(line).not.toContain("\n");
          }
        },
      ),
    );
  });
});

describe("without a terminal", () => {
  test("there is one line for each change, and none for what stayed", () => {
    const first = foldBatch(fresh, 2, [offered("one", "dream"), offered("two", "biscoe")]);
    expect(changeLines(null, first, { connected: null })).toEqual([
      "one  offered  dream",
      "two  offered  biscoe",
    ]);
    const second = foldBatch(first, 3, [started("one", "dream/a")]);
    expect(changeLines(first, second, { connected: null })).toEqual(["one  running  dream/a"]);
    expect(changeLines(second, second, { connected: null })).toEqual([]);
  });

  test("the end of the run is a line, with its reason", () => {
    const ended = foldBatch(fresh, 2, [
      { kind: "run.finished", atMs: 1_002_000, status: "failed", reason: "step one: exit code 3" },
    ]);
    expect(changeLines(fresh, ended, { connected: null })).toEqual([
      "run 01m85kzyz71kqjw0z19gdzynrg  failed  step one: exit code 3",
    ]);
  });
});
