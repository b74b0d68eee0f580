import type { ChildProcessWithoutNullStreams } from "node:child_process";
import { once } from "node:events";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { stepSpec } from "../../test/support/specs.ts";
import { offerOf, quiet } from "../agent.fixture.ts";
import type { Bundle } from "../bundle.fixture.ts";
import { CedarProcess } from "./cedar-process.ts";
import { questionOf } from "./cedar-question.ts";
import { bundleEvaluator, launchNode } from "./evaluator.fixture.ts";

const POLICIES = `@id("all") permit (principal, action, resource);
@id("no-rows") forbid (principal, action, resource) when { context.reads.contains("rows") };`;
const NOT_EVALUATED = { allowed: false, message: "its Cedar policies could not be evaluated" };
const FORBIDDEN = { allowed: false, message: "its Cedar policy no-rows forbids it" };
const rows = questionOf(offerOf({ step: stepSpec("fit", { reads: ["rows"] }) }));
const other = questionOf(offerOf({ step: stepSpec("fit", { reads: ["columns"] }) }));
/** Answers what it is loaded with, and then does as it is told. */
const after = (act: string): string =>
  `process.stdin.once("data", () => { process.stdout.write('{"kind":"loaded"}\\n'); process.stdin.once("data", () => { ${act} }); });`;

let evaluator: Bundle;
let launched: ChildProcessWithoutNullStreams[];

beforeAll(async () => {
  evaluator = await bundleEvaluator();
});
afterAll(() => evaluator[Symbol.dispose]());
beforeEach(() => {
  launched = [];
});

/** `programs`: in the evaluator's place, one after the other, and then the evaluator itself. */
function open(programs: string[] = [], options: { answerWithinMs?: number; idleMs?: number } = {}) {
  const launch = (): ChildProcessWithoutNullStreams => {
    const instead = programs[launched.length];
    const child = instead === undefined ? launchNode(evaluator.path) : launchNode("-e", instead);
    launched.push(child);
    return child;
  };
  return CedarProcess.open({ clock: systemClock, log: quiet, launch, ...options }, "a.cedar", POLICIES);
}

async function closed(policies: CedarProcess): Promise<void> {
  policies.close();
  await Promise.all(launched.map((child) => child.exitCode ?? child.signalCode ?? once(child, "exit")));
}

test("many questions at once get each its own answer, from one process", async () => {
  const policies = await open();
  const asked = Array.from({ length: 40 }, (_, index) => (index % 3 === 0 ? rows : other));
  const answers = await Promise.all(asked.map((question) => policies.answer(question)));
  for (const [index, answer] of answers.entries())
    expect(answer).toEqual(index % 3 === 0 ? FORBIDDEN : { allowed: true, message: "allowed" });
  expect(launched).toHaveLength(1);
  await closed(policies);
});

test("a text that looks like the end of a line is no end of a question", async () => {
  const policies = await open();
  const command = "\u2028\u2029\n\r\u0085{}";
  expect(await policies.answer({ ...rows, context: { ...rows.context, command } })).toEqual(FORBIDDEN);
  expect(launched).toHaveLength(1);
  await closed(policies);
});

test("its process ends when nothing is asked, and the next question starts another", async () => {
  const policies = await open([], { idleMs: 1 });
  const [first] = launched;
  await once(first!, "exit");
  expect(await policies.answer(rows)).toEqual(FORBIDDEN);
  expect(launched).toHaveLength(2);
  await closed(policies);
});

test("what was asked before it is closed is answered, and its process ends then", async () => {
  const policies = await open();
  const answers = Promise.all([policies.answer(rows), policies.answer(other)]);
  policies.close();
  expect(await answers).toEqual([FORBIDDEN, { allowed: true, message: "allowed" }]);
  await closed(policies);
  expect(launched.map(({ exitCode }) => exitCode)).toEqual([0]);
});

test.each<[string, string]>([
  ["dies", "process.kill(process.pid, 'SIGKILL')"],
  ["ends", "process.exit(0)"],
  ["says nothing", ""],
  ["speaks nonsense", "process.stdout.write('allowed\\n')"],
  ["says yes to something else", `process.stdout.write('{"kind":"loaded"}\\n')`],
  [
    "says more than a yes",
    `process.stdout.write('{"kind":"answer","answer":{"allowed":1,"message":""}}\\n')`,
  ],
])("of a process that %s another takes its place, and a second one is a no", async (_name, act) => {
  const first = await open([after(act)], { answerWithinMs: 5_000 });
  expect(await first.answer(rows)).toEqual(FORBIDDEN);
  await closed(first);
  expect(launched).toHaveLength(2);
  launched = [];
  const second = await open([after(act), after(act)], { answerWithinMs: 2_000 });
  expect(await second.answer(other)).toEqual(NOT_EVALUATED);
  await closed(second);
  expect(launched).toHaveLength(2);
});

test("a process that does not end with its input is killed", async () => {
  const deaf = `${after("")} setInterval(() => undefined, 1_000);`;
  const policies = await open([deaf], { answerWithinMs: 1_500 });
  await closed(policies);
  expect(launched.map(({ signalCode }) => signalCode)).toEqual(["SIGKILL"]);
});

test("policies that cannot be checked are not valid, and the reason says what its process complained of", async () => {
  await expect(open(["console.error('no memory'); process.exit(3)"])).rejects.toThrow(
    /a\.cedar: the process that evaluates Cedar policies failed: it ended with exit code 3: no memory/,
  );
});
