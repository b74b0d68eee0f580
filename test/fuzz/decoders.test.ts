/** Every decoder of what comes from outside, with inputs near the valid ones: an answer or a refusal, never a crash. */
import { generateKeyPairSync, sign } from "node:crypto";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { offerOf } from "../../agent/agent.fixture.ts";
import { OfferReader } from "../../agent/leases/offer-reader.ts";
import { parseHello, parseLogChunk, parseReport } from "../../control-plane/gateway/messages.ts";
import { InsituError } from "../../shared/errors.ts";
import { loadDocuments } from "../../shared/model/load-documents.ts";
import { OFFER_PURPOSE } from "../../shared/wire/attempt.ts";
import { decodeJoinToken, encodeJoinToken } from "../../shared/wire/join-token.ts";
import { decodeLogEntries, encodeLogEntries } from "../../shared/wire/log-codec.ts";
import { OWNERS_PURPOSE, ownersHeader, signedOwners } from "../../shared/wire/offer-owners.ts";
import { INPUTS, jsonOf, nearly, soup } from "./mutations.ts";

const LIMIT_MS = 30_000 + INPUTS * 20;
const options = { numRuns: INPUTS };

/** What it gives, or undefined when it refuses in our own words. Anything else fails the test. */
function refusing<T>(decode: () => T): T | undefined {
  try {
    return decode();
  } catch (err) {
    if (err instanceof InsituError && err.code !== "internal") return undefined;
    throw err;
  }
}

const lease = { runId: "01m895mc13gx0n7f9b50pyn3za", stepId: "fit", attempt: 1, epoch: 1 };
const REPORT = Buffer.from(JSON.stringify({ kind: "started", lease, atMs: 5 }));
const REPORT_WORDS = [
  ...["kind", "started", "finished", "lease", "runId", "stepId", "attempt", "epoch", "atMs", "outcome"],
  ...["status", "succeeded", "failed", "outputs", "error", "__proto__", "constructor", lease.runId, "fit"],
];

describe("a report", () => {
  test("near a valid one is read or refused", { timeout: LIMIT_MS }, () => {
    let read = 0;
    const property = fc.property(nearly(REPORT), (bytes) => {
      const report = refusing(() => parseReport(bytes));
      if (report) read += 1;
    });
    fc.assert(property, options);
    expect(read).toBeGreaterThan(0);
  });

  test("of any JSON is read or refused", { timeout: LIMIT_MS }, () => {
    const property = fc.property(jsonOf(REPORT_WORDS), (json) => {
      refusing(() => parseReport(Buffer.from(JSON.stringify(json))));
      expect(Object.prototype).not.toHaveProperty("polluted");
    });
    fc.assert(property, options);
  });
});

test("a log chunk and a hello of any shape are read or refused", { timeout: LIMIT_MS }, () => {
  const words = [
    "seq",
    "runId",
    "stepId",
    "entries",
    "encoding",
    "gzip",
    "slots",
    "labels",
    "instanceId",
    "1",
  ];
  const property = fc.property(jsonOf(words), (json) => {
    refusing(() => parseLogChunk(json as never));
    refusing(() => parseHello((json ?? {}) as never));
  });
  fc.assert(property, options);
});

test("bytes of log entries are read or refused, and never become more than a chunk may hold", {
  timeout: LIMIT_MS,
}, () => {
  const entry = { seq: 1, atMs: 5, stream: "stdout" as const, data: Buffer.from("line\n"), droppedBytes: 0 };
  const small = encodeLogEntries([entry]);
  const large = encodeLogEntries(Array.from({ length: 200 }, (_, seq) => ({ ...entry, seq })));
  expect([small.encoding, large.encoding]).toEqual(["identity", "gzip"]);
  let read = 0;
  const property = fc.property(
    fc.constantFrom("identity" as const, "gzip" as const),
    nearly(small.bytes, large.bytes),
    (encoding, bytes) => {
      let entries: ReturnType<typeof decodeLogEntries>;
      try {
        entries = decodeLogEntries(encoding, bytes);
      } catch (err) {
        // Documented: an error of the codec's own, for whoever called it to say what it was reading.
        expect(err).toBeInstanceOf(Error);
        return;
      }
      read += 1;
      const bytesRead = entries.reduce((sum, { data }) => sum + data.length, 0);
      expect(bytesRead).toBeLessThanOrEqual(16 * 1024 * 1024);
    },
  );
  fc.assert(property, options);
  expect(read).toBeGreaterThan(0);
});

describe("an offer", () => {
  const { publicKey, privateKey } = generateKeyPairSync("ed25519");
  const reader = new OfferReader();
  reader.setKey(Buffer.from(publicKey.export({ type: "spki", format: "pem" })));
  const signed = (payload: Uint8Array): string =>
    sign(null, Buffer.concat([Buffer.from(`${OFFER_PURPOSE}\0`), payload]), privateKey).toString("base64");
  const WORDS = [
    "lease",
    "step",
    "reads",
    "argv",
    "expiresAtMs",
    "environment",
    "uses",
    "noop",
    "policyVersion",
  ];

  test("with another signature, or none, or other bytes under a true one, is refused", {
    timeout: LIMIT_MS,
  }, () => {
    const payload = Buffer.from(JSON.stringify({ lease }));
    const signature = Buffer.from(signed(payload), "base64");
    const property = fc.property(nearly(payload), nearly(signature), (bytes, other) => {
      fc.pre(!bytes.equals(payload) || !other.equals(signature));
      const answer = reader.read(bytes, other.toString("base64"));
      expect(answer).toEqual({ kind: "refused", reason: expect.stringMatching(/signature|signed/) });
    });
    fc.assert(property, options);
  });

  test("whose header of owners is another than the signed one, is refused", { timeout: LIMIT_MS }, () => {
    const payload = Buffer.from(JSON.stringify(offerOf()));
    const signature = signed(payload);
    const json = Buffer.from('{"pipeline":"lab","datasets":{"rows":"registry"}}');
    const purpose = Buffer.from(`${OWNERS_PURPOSE}\0`);
    const bytes = Buffer.concat([purpose, signedOwners(payload, json)]);
    const genuine = sign(null, bytes, privateKey);
    const header = ownersHeader(json, genuine.toString("base64"));
    expect(reader.read(payload, signature, header)).toMatchObject({ kind: "offer" });
    const property = fc.property(nearly(json), nearly(genuine), (text, other) => {
      fc.pre(!text.equals(json) || !other.equals(genuine));
      const near = ownersHeader(text, other.toString("base64"));
      expect(reader.read(payload, signature, near)).toMatchObject({ kind: "refused" });
    });
    fc.assert(property, options);
  });

  test("that is truly signed but is no offer is refused with its field", { timeout: LIMIT_MS }, () => {
    const property = fc.property(jsonOf(WORDS), (json) => {
      const payload = Buffer.from(JSON.stringify(json));
      expect(reader.read(payload, signed(payload))).toMatchObject({ kind: "refused" });
    });
    fc.assert(property, { numRuns: Math.min(INPUTS, 20_000) });
  });
});

test("a join token near a valid one is read or refused in words", { timeout: LIMIT_MS }, () => {
  const valid = encodeJoinToken({
    environment: "dream",
    gateway: "insitu.example:7443",
    caPin: `sha256:${"a".repeat(64)}`,
    secret: "s".repeat(32),
  });
  const property = fc.property(nearly(Buffer.from(valid)), (bytes) => {
    const token = refusing(() => decodeJoinToken(bytes.toString("utf8")));
    if (token) expect(token.caPin).toMatch(/^sha256:[0-9a-f]{64}$/);
  });
  fc.assert(property, options);
});

describe("a document", () => {
  const WORDS = [
    ..."kind: |name: |steps:|pipeline|dataset|environment|pool|id: |needs: |run: |uses: |reads: |when: ".split(
      "|",
    ),
    ..."\n|\n  - |\n    |: |- |[|]|{|}|,|#|'|\"|&a |*a|<<: *a|!!binary |!!set |!!js/function |? |\\u0000|---\n|...\n".split(
      "|",
    ),
    ..."noop|sh|1|-1|1e999|0x10|.nan|~|null|true|2026-11-25|a|b|__proto__: |constructor: |%YAML 1.1\n|\t|\uFEFF".split(
      "|",
    ),
    ...["|\n", ">\n", "${", "{{ ", "../", "/etc/passwd"],
  ];
  const VALID = Buffer.from(
    "kind: pipeline\nname: p\nsteps:\n  - id: a\n    environment: e\n    run: [sh, -c, 'true']\n    reads: [d]\n",
  );
  const load = (text: string) =>
    loadDocuments({ files: [{ file: "p.yaml", text }], readAttachment: () => undefined });

  test("of any words is read, or each fault is told with its place", { timeout: LIMIT_MS }, () => {
    const property = fc.property(soup(WORDS), (text) => {
      const { errors, resources } = load(text);
      if (resources.length === 0) expect(errors.length).toBeGreaterThan(0);
      for (const { file, line, column } of errors) {
        expect(file).toBe("p.yaml");
        expect(line).toBeGreaterThan(0);
        expect(column).toBeGreaterThan(0);
      }
    });
    fc.assert(property, options);
  });

  test("near a valid one is read or refused", { timeout: LIMIT_MS }, () => {
    let read = 0;
    const property = fc.property(nearly(VALID), (bytes) => {
      const { errors, resources } = load(bytes.toString("utf8"));
      expect(resources.length + errors.length).toBeGreaterThan(0);
      read += resources.length;
    });
    fc.assert(property, options);
    expect(read).toBeGreaterThan(0);
  });

  test("of aliases of aliases costs no memory and is refused", { timeout: LIMIT_MS }, () => {
    const lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"];
    for (let n = 1; n < 30; n++)
      lines.push(
        `a${n}: &a${n} [${Array(9)
          .fill(`*a${n - 1}`)
          .join(", ")}]`,
      );
    expect(load(lines.join("\n")).errors.length).toBeGreaterThan(0);
  });
});
