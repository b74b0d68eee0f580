import { expect, test } from "vitest";
import { FAULT_KINDS } from "./faults.ts";
import { HELP, parseFlags } from "./flags.ts";

test("without flags: five minutes, everything that can be broken, the network that works here", () => {
  expect(parseFlags([])).toMatchObject({ minutes: 5, seed: 1, nats: 3, only: FAULT_KINDS, keep: false });
  expect(parseFlags([])).not.toHaveProperty("network");
});

test("some kinds, with their names as they are printed", () => {
  expect(parseFlags(["--only", "kill agent, cut", "--minutes", "0.5"])).toMatchObject({
    only: ["kill agent", "cut"],
    minutes: 0.5,
  });
});

test("every wrong flag is named, and one that does not exist", () => {
  const flags = parseFlags(["--nats", "2", "--only", "kill everything", "--minutes", "0"]);
  expect(flags).toEqual({
    faults: ["minutes", "nats", "only"].map((name) => expect.stringContaining(`--${name}`)),
  });
  expect(parseFlags(["--bogus"])).toEqual({ faults: [expect.stringContaining("--bogus")] });
});

test("help names every flag and every kind of fault", () => {
  expect(parseFlags(["-h"])).toBe("help");
  for (const name of [
    "minutes",
    "seed",
    "network",
    "replicas",
    "nats",
    "sites",
    "runs",
    "every",
    "concurrent",
  ])
    expect(HELP).toContain(`--${name} `);
  for (const kind of FAULT_KINDS) expect(HELP).toContain(kind);
});
