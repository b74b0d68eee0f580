import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { CLASSIFICATIONS, type Classification } from "../../shared/model/spec.ts";
import { stepSpec } from "../../test/support/specs.ts";
import { highestClassification, release, verdictsFor } from "./egress-gate.ts";

const reading = (reads: string[], known: Record<string, Classification>) =>
  highestClassification({
    step: stepSpec("fit", { reads }),
    datasets: Object.entries(known).map(([name, classification]) => ({ name, classification })),
  });

describe("the classification that counts", () => {
  test("is the highest of what the step reads", () => {
    expect(reading(["a", "b"], { a: "public", b: "restricted" })).toBe("restricted");
  });
  test("is none for a step that reads nothing", () => {
    expect(reading([], { written: "secret" })).toBeNull();
  });
  test("is the most secret one when the offer says nothing of a dataset", () => {
    expect(reading(["a", "unknown"], { a: "public" })).toBe("secret");
  });
});

test.each<[Classification | null, string, string]>([
  [null, "allow", "allow"],
  ["public", "allow", "allow"],
  ["internal", "allow", "allow"],
  ["confidential", "digest", "withhold"],
  ["restricted", "digest", "withhold"],
  ["secret", "digest", "withhold"],
])("data classed %s: outputs %s, logs and error text %s", (classification, outputs, text) => {
  expect(verdictsFor(classification)).toEqual({ outputs, logs: text, errors: text });
});

test("above internal no text of a step is in what is released, and every byte is counted once", () => {
  const secret = fc.string({ minLength: 12, maxLength: 40, unit: fc.constantFrom(..."§±¶µ¤") });
  fc.assert(
    fc.property(
      fc.constantFrom(...CLASSIFICATIONS),
      fc.dictionary(fc.constantFrom("a", "b", "c"), secret),
      secret,
      fc.nat(10_000),
      (classification, texts, message, logBytes) => {
        const outputs = Object.fromEntries(
          Object.entries(texts).map(([name, text]) => [
            name,
            { type: "text" as const, digest: `sha256:${name}`, text },
          ]),
        );
        const produced = {
          outputs,
          error: { code: "exit", message },
          artifacts: [{ name: "r", bytes: 9 }],
          logBytes,
        };
        const released = release(verdictsFor(classification), produced);
        const open = classification === "public" || classification === "internal";
        const shown = JSON.stringify(released);
        for (const text of [...Object.values(texts), message]) expect(shown.includes(text)).toBe(open);
        const outputBytes = Object.values(texts).reduce((sum, text) => sum + Buffer.byteLength(text), 0);
        const all = outputBytes + Buffer.byteLength(message) + logBytes;
        const sum = (field: "sentBytes" | "keptBytes") =>
          released.egress.reduce((total, record) => total + record[field], 0);
        expect(sum("sentBytes")).toBe(open ? all : 0);
        expect(sum("keptBytes")).toBe((open ? 0 : all) + 9); // artifacts stay, always
      },
    ),
  );
});

test("what leaves with masks in it is told apart, and what stays is not", () => {
  const output = { type: "text", digest: "sha256:0", text: "a ***" } as const;
  const produced = {
    ...{ outputs: { a: output, b: output }, error: null, artifacts: [], logBytes: 7 },
    masked: { log: true, outputs: ["a"] },
  };
  expect(release(verdictsFor("internal"), produced).egress).toEqual([
    { kind: "output", name: "a", verdict: "redact", sentBytes: 5, keptBytes: 0 },
    { kind: "output", name: "b", verdict: "allow", sentBytes: 5, keptBytes: 0 },
    { kind: "log", name: "log", verdict: "redact", sentBytes: 7, keptBytes: 0 },
  ]);
  expect(release(verdictsFor("secret"), produced).egress.map(({ verdict }) => verdict)).toEqual([
    "digest",
    "digest",
    "withhold",
  ]);
});

test("what went over the network is counted by target whatever was read, and what is not on the list has no name", () => {
  const figures = { connections: 1, failures: 0, sentBytes: 5, receivedBytes: 9 };
  const network = [
    { target: "db.test:5432", ...figures },
    { target: null, connections: 0, failures: 2, sentBytes: 0, receivedBytes: 0 },
  ];
  const produced = { outputs: {}, error: null, artifacts: [], logBytes: 0, network };
  for (const read of [null, ...CLASSIFICATIONS])
    expect(release(verdictsFor(read), produced).egress).toEqual([
      { kind: "network", name: "db.test:5432", verdict: "allow", keptBytes: 0, ...figures },
      {
        ...{ kind: "network", name: "others", verdict: "withhold", sentBytes: 0, keptBytes: 0 },
        ...{ connections: 0, failures: 2, receivedBytes: 0 },
      },
    ]);
});
