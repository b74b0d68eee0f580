/** Holds the sources to the rules of STYLE, and each rule to a sample that breaks it. */
import { readdirSync, readFileSync } from "node:fs";
import { join, relative, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { describeViolations, findViolations, type SourceFile } from "./support/architecture.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

function sources(): SourceFile[] {
  return ["shared", "control-plane", "agent", "test"].flatMap((top) =>
    readdirSync(join(ROOT, top), { recursive: true, withFileTypes: true })
      .filter(
        (entry) => entry.isFile() && entry.name.endsWith(".ts") && !/\.d\.ts$|\.generated\./.test(entry.name),
      )
      .map((entry) => join(entry.parentPath, entry.name))
      .filter((path) => !path.includes(join("wire", "gen")) && !path.includes("node_modules"))
      .map((path) => ({ path: relative(ROOT, path).split(sep).join("/"), text: readFileSync(path, "utf8") })),
  );
}

test("the sources keep the rules", () => {
  const files = sources();
  expect(files.length).toBeGreaterThan(20);
  expect(describeViolations(findViolations(files))).toBe("");
});

describe("the rules catch", () => {
  test.each<[string, string, string, string]>([
    [
      "the agent importing the control plane",
      "agent/main.ts",
      'import { x } from "../control-plane/store/kv.ts";',
      "sides",
    ],
    [
      "a type crossing sides",
      "agent/main.ts",
      'import type { X } from "../control-plane/store/kv.ts";',
      "sides",
    ],
    ["shared importing a side, lazily", "shared/wire/a.ts", 'await import("../../agent/main.ts");', "sides"],
    [
      "shared re-exporting from a side",
      "shared/wire/a.ts",
      'export * from "../../control-plane/a.ts";',
      "sides",
    ],
    [
      "a file read by a decision",
      "shared/engine/a.ts",
      'import { readFile } from "node:fs/promises";',
      "deciding",
    ],
    [
      "a store used by a decision",
      "control-plane/runs/a.ts",
      'import { Kv } from "../store/kv.ts";',
      "deciding",
    ],
    ["a library with I/O in a decision", "agent/egress/gate.ts", 'import { open } from "lmdb";', "deciding"],
    [
      "a logger's type in a decision",
      "control-plane/runs/a.ts",
      'import type { Logger } from "pino";',
      "deciding",
    ],
    [
      "a service that knows NATS",
      "control-plane/runs/run-service.ts",
      'import { connect } from "nats";',
      "deciding",
    ],
    [
      "a decision that imports a service",
      "control-plane/leases/a.ts",
      'import { s } from "../runs/run-service.ts";',
      "deciding",
    ],
    ["sockets in shared", "shared/wire/a.ts", 'import net from "node:net";', "shared without I/O"],
    ["the wall clock", "agent/main.ts", "const a = Date.now();", "time and chance"],
    [
      "the wall clock behind globalThis",
      "agent/main.ts",
      "const a = globalThis.Date.now();",
      "time and chance",
    ],
    ["the monotonic clock", "agent/main.ts", "const a = performance.now();", "time and chance"],
    ["a date of now", "agent/main.ts", "const a = new Date();", "time and chance"],
    ["a timer", "agent/main.ts", "setTimeout(() => {}, 1);", "time and chance"],
    ["a timer that is handed on", "agent/main.ts", "start({ timer: setInterval });", "time and chance"],
    [
      "timers from their module",
      "agent/main.ts",
      'import { setTimeout as s } from "node:timers/promises";',
      "time and chance",
    ],
    ["a sleep in a test", "agent/a.test.ts", "setTimeout(done, 100);", "time and chance"],
    ["chance", "agent/main.ts", "const a = Math.random();", "time and chance"],
    ["random ids", "agent/main.ts", 'import { randomUUID } from "node:crypto";', "time and chance"],
    ["a deadline inside a decision", "control-plane/runs/a.ts", "AbortSignal.timeout(5);", "time and chance"],
    ["the environment read outside main", "agent/uplink/a.ts", "const a = process.env.HOME;", "environment"],
    ["the environment taken apart", "agent/uplink/a.ts", "const { env } = process;", "environment"],
    ["a job among the identifiers", "agent/leases/a.ts", "const stepJob = 1;", "glossary"],
    ["tasks among the members", "agent/leases/a.ts", "run.allTasks();", "glossary"],
    ["Brotli being decoded", "agent/uplink/a.ts", 'import { brotliDecompress } from "node:zlib";', "brotli"],
    ["a file of helpers", "agent/leases/lease-utils.ts", "export {};", "names"],
    ["a file in camel case", "agent/leases/leaseTable.ts", "export {};", "names"],
    ["a file past 600 lines", "agent/leases/a.ts", "export {};\n".repeat(601), "length"],
  ])("%s", (_what, path, text, rule) => {
    const found = findViolations([{ path, text: `// first\n${text}` }]);
    expect(found).toContainEqual(expect.objectContaining({ path, rule }));
    expect(describeViolations(found)).toMatch(new RegExp(`^${path}:\\d+  `));
  });

  test("the line of the violation", () => {
    const [found] = findViolations([{ path: "agent/main.ts", text: "// one\n\n  const a = Date.now();\n" }]);
    expect(found?.line).toBe(3);
  });
});

describe("the rules let pass", () => {
  test.each<[string, string, string]>([
    ["a dated date", "agent/main.ts", "const a = new Date(atMs);"],
    ["a clock's own methods", "agent/main.ts", "world.setTimeout(1); const b = { setTimeout: 1 };"],
    ["time in the one file for it", "shared/system.ts", "Date.now(); setTimeout(f, 1); Math.random();"],
    ["the environment in main and config", "control-plane/config.ts", "load(process.env);"],
    ["a service's logger", "control-plane/runs/run-service.ts", 'import type { Logger } from "pino";'],
    [
      "a decision that takes a port's type",
      "control-plane/runs/a.ts",
      'import type { K } from "../store/kv.ts";',
    ],
    [
      "hashing and schemas in a decision",
      "shared/model/a.ts",
      'import { createHash } from "node:crypto"; import { z } from "zod";',
    ],
    ["microtasks", "agent/main.ts", "queueMicrotask(fewMicrotasks);"],
    [
      "a long file that says why",
      "agent/a.ts",
      `// Long because the table is.\n${"export {};\n".repeat(700)}`,
    ],
  ])("%s", (_what, path, text) => {
    const found = findViolations([{ path, text }]);
    // The one rule that a sample breaks on purpose elsewhere is not its subject here.
    expect(describeViolations(found)).toBe("");
  });
});
