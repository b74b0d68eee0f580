import { expect, test } from "vitest";
import { SandboxConfig } from "./sandbox-config.ts";
import { limitsOf } from "./step-limits.ts";

const GiB = 1024 ** 3;
const config = (change: object = {}) => SandboxConfig.parse(change);

test("a step that says nothing gets what the configuration says, and four fifths of the host's memory", () => {
  expect(limitsOf({}, config(), 10 * GiB)).toEqual({
    memoryBytes: 8 * GiB,
    cpus: undefined,
    processes: 4096,
    openFiles: 1024,
    fileSizeBytes: 64 * GiB,
  });
  expect(limitsOf({}, config({ limits: { memoryBytes: GiB, cpus: 2 } }), 10 * GiB)).toMatchObject({
    memoryBytes: GiB,
    cpus: 2,
  });
});

test.each([
  // asked, configured, what the message says, or undefined when it is given
  [{ memoryBytes: GiB }, {}, undefined],
  [{ memoryBytes: 9 * GiB }, {}, /memory 9 GiB, and this agent gives 8 GiB .*maxima.memoryBytes/],
  [{ memoryBytes: 9 * GiB }, { maxima: { memoryBytes: 9 * GiB } }, undefined],
  [{ cpus: 64 }, {}, undefined],
  [{ cpus: 64 }, { limits: { cpus: 2 } }, /cpu 64, and this agent gives 2 /],
  [{ cpus: 4 }, { maxima: { cpus: 3 } }, /cpu 4, and this agent gives 3 /],
  [{ openFiles: 1025 }, {}, /openFiles 1025, and this agent gives 1024 /],
  // A maximum below what everybody has anyway takes nothing away.
  [{ openFiles: 1000 }, { maxima: { openFiles: 100 } }, undefined],
])("asked for %j with %j: %s", (asked, change, message) => {
  const limits = limitsOf(asked, config(change), 10 * GiB);
  if (message) expect(limits).toMatch(message);
  else expect(limits).toMatchObject(asked);
});
