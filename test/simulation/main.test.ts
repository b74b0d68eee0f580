/** `npm run sim` as it is typed: what it prints last, its exit status, and the replay of what failed. */
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

const SCRIPT = fileURLToPath(new URL("../../scripts/sim.mjs", import.meta.url));
const LIMIT_MS = 120_000;

interface Ended {
  code: number;
  stdout: string;
  stderr: string;
}

function sim(...flags: string[]): Promise<Ended> {
  return new Promise((resolve) => {
    execFile(process.execPath, [SCRIPT, ...flags], { maxBuffer: 64 << 20 }, (error, stdout, stderr) => {
      // What did not end by itself has no exit code: no test takes -1 for one.
      const code = error === null ? 0 : typeof error.code === "number" ? error.code : -1;
      resolve({ code, stdout, stderr });
    });
  });
}

const lastLine = ({ stdout }: Ended): string => stdout.trimEnd().split("\n").at(-1)!;

test("worlds in which all holds end with a summary and status 0", { timeout: LIMIT_MS }, async () => {
  const ended = await sim("--seed", "1", "--worlds", "20");
  expect(lastLine(ended)).toMatch(
    /^worlds 20, runs \d+, events \d{4,}, virtual hours \d+, failures 0, [\d.]+ s$/,
  );
  expect(ended.code).toBe(0);
});

test("a world that fails is told with its seed, and its replay fails in the same way", {
  timeout: LIMIT_MS,
}, async () => {
  const ended = await sim("--worlds", "60", "--plant", "ack-before-durable");
  expect(lastLine(ended)).toMatch(/^worlds 60, .* failures [1-9]\d*, /);
  expect(ended.code).toBe(1);
  expect(ended.stdout).not.toContain("does not replay exactly");
  const [broken] = /^seed \d+: broken: .*$/m.exec(ended.stdout)!;
  const [, flags] = /replay: npm run sim -- (.*)$/m.exec(ended.stdout)!;
  const again = await sim(...flags!.split(" "));
  expect(again.stdout).toContain(`\n${broken}\n`);
  expect(lastLine(again)).toMatch(/^worlds 1, .* failures 1, /);
  expect(again.code).toBe(1);
});

test("a flag that makes no sense is refused with what to give instead", { timeout: LIMIT_MS }, async () => {
  const unknown = await sim("--plant", "no-such-bug");
  expect(unknown).toMatchObject({ code: 2, stderr: expect.stringContaining("there are: renew-all-leases") });
  const none = await sim("--worlds", "0");
  expect(none).toMatchObject({ code: 2, stderr: expect.stringContaining("--worlds one from 1") });
});
