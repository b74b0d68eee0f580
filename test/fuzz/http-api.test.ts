/** The HTTP API of a real server, asked as its description allows and a little beside it: no 500, no hang, no crash. */
import { request } from "node:http";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Plant } from "../support/plant.ts";
import { INPUTS, jsonOf, nearly, soup } from "./mutations.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const LIMIT_MS = 60_000 + INPUTS * 50;
/** An answer that takes longer than this has hung; streams are cut off by the client before. */
const ANSWER_MAX_MS = 15_000;
const STREAMED = /events$|\/logs$/;

interface Operation {
  operationId: string;
  parameters?: { name: string; in: "path" | "query" | "header" }[];
}
interface Asked {
  method: string;
  path: string;
  headers: Record<string, string>;
  body: Buffer | undefined;
}
interface Answer {
  status: number;
  type: string;
  text: string;
}

let plant: Plant;
let operations: { method: string; path: string; parameters: NonNullable<Operation["parameters"]> }[];
let runId: string;

beforeAll(async () => {
  plant = new Plant({ dist: DIST, env: { INSITU_LOG_LEVEL: "warn" } });
  await plant.startServer();
  const { paths } = (await plant.call("GET", "/v1/openapi.json")) as {
    paths: Record<string, Record<string, Operation>>;
  };
  operations = Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, { parameters = [] }]) => ({
      method: method.toUpperCase(),
      path,
      parameters,
    })),
  );
  await plant.apply(
    { kind: "environment", name: "site", jurisdiction: "DE" },
    { kind: "pipeline", name: "small", steps: [{ id: "a", environment: "site", uses: "noop" }] },
  );
  runId = (await plant.start("small")).id;
});
afterAll(async () => {
  await plant?.[Symbol.asyncDispose]();
});

/** As bytes on the wire, so that what a client library would mend gets there as it is. */
function ask({ method, path, headers, body }: Asked): Promise<Answer | "cut"> {
  const { hostname, port } = new URL(plant.url);
  return new Promise((resolve, reject) => {
    const sent = request({ hostname, port, method, path, headers, timeout: ANSWER_MAX_MS }, (response) => {
      const chunks: Buffer[] = [];
      const answer = () => ({
        status: response.statusCode ?? 0,
        type: response.headers["content-type"] ?? "",
        text: Buffer.concat(chunks).toString("utf8"),
      });
      response.on("data", (chunk: Buffer) => chunks.push(chunk));
      response.on("end", () => resolve(answer()));
      response.on("error", () => resolve("cut"));
      // It may have no end of its own.
      if (STREAMED.test(path.split("?")[0]!) && response.statusCode === 200) {
        resolve(answer());
        response.destroy();
      }
    });
    sent.on("timeout", () =>
      sent.destroy(new Error(`no answer to ${method} ${path} in ${ANSWER_MAX_MS} ms`)),
    );
    sent.on("error", (err: NodeJS.ErrnoException) =>
      err.code === "ECONNRESET" || err.code === "EPIPE" ? resolve("cut") : reject(err),
    );
    sent.end(body);
  });
}

const WORDS = [
  ...["small", "site", "a", "pipeline", "environment", "name", "kind", "steps", "documents", "attachments"],
  ...[
    "file",
    "text",
    "reason",
    "as",
    "failed",
    "succeeded",
    "role",
    "viewer",
    "ttl",
    "uses",
    "params",
    "limit",
  ],
  ...["__proto__", "toString", "../", "%00", "*", ">", ".", "\u0000", "a".repeat(300), "sha256:", "1", "-1"],
];

function asked(): fc.Arbitrary<Asked> {
  const segment = fc.oneof(fc.constantFrom(runId, ...WORDS), fc.string({ maxLength: 20, unit: "binary" }));
  const query = fc.oneof(fc.constantFrom(...WORDS, "50", "999999999999", "true", ""), soup(WORDS, 4));
  const body = fc.oneof(
    jsonOf(WORDS).map((json) => Buffer.from(JSON.stringify(json))),
    nearly(Buffer.from(JSON.stringify({ pipeline: "small", params: {} }))),
    nearly(
      Buffer.from(JSON.stringify({ documents: [{ file: "p.yaml", text: "kind: pool" }], attachments: {} })),
    ),
  );
  const type = fc.constantFrom("application/json", "application/json; charset=utf-16", "text/plain", "");
  const header = fc.constantFrom("0", "-1", "1e9", "x", "9".repeat(400), runId);
  return fc
    .record({
      operation: fc.constantFrom(...operations),
      segments: fc.array(segment, { minLength: 4, maxLength: 4 }),
      queries: fc.array(query, { minLength: 8, maxLength: 8 }),
      extra: fc.option(query),
      body,
      type,
      header,
      oneInTen: fc.nat(9),
    })
    .map(
      ({ operation, segments, queries, extra, body: bytes, type: contentType, header: text, oneInTen }) => {
        let n = 0;
        const path = operation.path.replace(/\{[^}]+\}/g, () =>
          encodeURIComponent(wellFormed(segments[n++ % 4]!)),
        );
        const named = operation.parameters.filter((one) => one.in === "query");
        const pairs = named.map(
          ({ name }, i) => `${name}=${encodeURIComponent(wellFormed(queries[i % 8]!))}`,
        );
        if (extra !== null) pairs.push(encodeURIComponent(wellFormed(extra)));
        const withBody = operation.method !== "GET";
        return {
          method: operation.method,
          path: path + (pairs.length > 0 ? `?${pairs.join("&")}` : ""),
          headers: {
            ...(oneInTen === 0 ? {} : { authorization: `Bearer ${plant.token}` }),
            "idempotency-key": text,
            "last-event-id": text,
            ...(withBody && contentType !== "" ? { "content-type": contentType } : {}),
          },
          body: withBody ? bytes : undefined,
        };
      },
    );
}

/** Lone surrogates cannot be written into a URL at all. */
const wellFormed = (text: string): string => Buffer.from(text, "utf8").toString("utf8");

test("each answer is one that the API describes, and the server goes on", { timeout: LIMIT_MS }, async () => {
  const counts = new Map<number, number>();
  const property = fc.asyncProperty(asked(), async (one) => {
    const answer = await ask(one);
    if (answer === "cut") return;
    counts.set(answer.status, (counts.get(answer.status) ?? 0) + 1);
    expect(answer.status, answer.text).not.toBe(500);
    if (answer.status < 400) return;
    // A request that Node's own parser refuses never reaches the API.
    if (answer.text === "") expect([400, 431]).toContain(answer.status);
    else {
      expect(answer.type).toMatch(/^application\/problem\+json/);
      expect(JSON.parse(answer.text)).toMatchObject({ status: answer.status, code: expect.any(String) });
      expect(answer.text).not.toMatch(/node_modules|at .*\.ts:\d+|at .*\.js:\d+/);
    }
  });
  await fc.assert(property, { numRuns: INPUTS });
  expect((await fetch(`${plant.url}/readyz`)).status).toBe(200);
  expect(plant.server?.exitCode).toBeNull();
  // Not all at the door: some are let in, some not found, some told what is wrong with them.
  for (const status of [200, 400, 401, 404]) expect(counts.get(status), `${status}`).toBeGreaterThan(0);
});
