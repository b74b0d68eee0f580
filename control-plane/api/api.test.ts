import { gzipSync } from "node:zlib";
import { describe, expect, test } from "vitest";
import { DIGEST, TOKEN, testApi } from "./api.fixture.ts";
import type { Problem } from "./schemas.ts";

async function problem(response: Response): Promise<Problem> {
  expect(response.headers.get("content-type")).toBe("application/problem+json");
  const body = (await response.json()) as Problem;
  expect(body.status).toBe(response.status);
  return body;
}

describe("who may ask", () => {
  test.each([undefined, "Bearer wrong", `Basic ${TOKEN}`, "Bearer ", `Bearer ${TOKEN}x`])(
    "a request with the authorization %j is refused",
    async (authorization) => {
      const { app } = testApi();
      const response = await app.request(
        "/v1/runs",
        authorization === undefined ? {} : { headers: { authorization } },
      );
      expect(response.status).toBe(401);
      expect(response.headers.get("www-authenticate")).toContain("Bearer");
      expect(await problem(response)).toMatchObject({
        code: "auth.missing",
        type: "urn:insitu:problem:auth.missing",
      });
    },
  );

  test.each(["/livez", "/readyz", "/version"])("%s asks for no token", async (path) => {
    const { app } = testApi();
    expect((await app.request(path)).status).toBe(200);
  });

  test.each(["evil.example", "evil.example:7070", "127.0.0.1.evil.example", "localhost.evil.example:80"])(
    "a browser that was led here as %s is turned away, token or not",
    async (host) => {
      const { call } = testApi();
      const response = await call("/v1/runs", { headers: { host } });
      expect(response.status).toBe(421);
      expect((await problem(response)).code).toBe("request.host-refused");
    },
  );

  test.each(["localhost:7070", "127.0.0.1", "[::1]:7070", "LOCALHOST"])(
    "the host %s is answered",
    async (host) => {
      expect((await testApi().call("/v1/runs", { headers: { host } })).status).toBe(200);
    },
  );

  test("every answer, a refusal too, tells the browser to be careful", async () => {
    const { app, call } = testApi();
    for (const response of [await app.request("/v1/runs"), await call("/v1/runs"), await call("/nowhere")]) {
      expect(response.headers.get("x-content-type-options")).toBe("nosniff");
      expect(response.headers.get("content-security-policy")).toContain("default-src 'none'");
      expect(response.headers.get("cache-control")).toBe("no-store");
      expect(response.headers.get("x-request-id")).toMatch(/^[0-9a-z]{26}$/);
    }
  });
});

describe("what may be sent", () => {
  const body = JSON.stringify({ pipeline: "penguins" });
  const post = (headers: Record<string, string>, content: string | Buffer<ArrayBuffer>) =>
    testApi().call("/v1/runs", { method: "POST", headers, body: content });

  test("a gzip body is read", async () => {
    const headers = { "content-type": "application/json", "content-encoding": "gzip" };
    expect((await post(headers, gzipSync(body))).status).toBe(201);
  });

  test.each(["br", "deflate", "gzip, br", "zstd"])(
    "a body in the encoding %s is refused unread",
    async (encoding) => {
      const response = await post(
        { "content-type": "application/json", "content-encoding": encoding },
        "\u0000",
      );
      expect(response.status).toBe(415);
      expect((await problem(response)).code).toBe("request.unsupported-encoding");
    },
  );

  test.each(["text/plain", "application/x-www-form-urlencoded", "text/yaml"])(
    "a body of %s is refused",
    async (type) => {
      const response = await post({ "content-type": type }, body);
      expect(response.status).toBe(415);
      expect((await problem(response)).code).toBe("request.unsupported-media-type");
    },
  );

  test("a body that is not JSON is refused, with the place where it broke", async () => {
    const response = await post({ "content-type": "application/json; charset=utf-8" }, '{"pipeline": ');
    expect(response.status).toBe(400);
    expect((await problem(response)).detail).toMatch(/not JSON/);
  });

  test("a body above 8 MiB is refused, whether it is sent whole or swells when unpacked", async () => {
    const large = JSON.stringify({ pipeline: "x".repeat(8 * 1024 * 1024) });
    const json = { "content-type": "application/json" };
    expect((await post(json, large)).status).toBe(413);
    const bomb = await post({ ...json, "content-encoding": "gzip" }, gzipSync(large));
    expect((await problem(bomb)).code).toBe("request.too-large");
  });

  test("a body that does not fit its schema is refused with a pointer to each fault", async () => {
    const response = await testApi().call("/v1/runs", {
      json: { pipeline: "No Name", params: { a: [] }, extra: 1 },
    });
    const { code, errors } = await problem(response);
    expect(code).toBe("request.invalid");
    expect(errors?.map((error) => error.pointer)).toEqual(["#/pipeline", "#/params/a", "#"]);
  });

  test("a missing body names what is missing", async () => {
    const response = await testApi().call("/v1/runs", { method: "POST" });
    expect((await problem(response)).errors?.[0]?.pointer).toBe("#/pipeline");
  });

  test("a query that does not fit is refused with the parameter's name", async () => {
    const response = await testApi().call("/v1/runs?limit=1001");
    expect((await problem(response)).errors?.[0]?.pointer).toBe("query/limit");
  });
});

describe("what is not there", () => {
  test("an unknown path is a problem, not a page", async () => {
    const response = await testApi().call("/v1/nowhere");
    expect(response.status).toBe(404);
    expect((await problem(response)).code).toBe("not-found");
  });

  test.each([
    ["PUT", "/v1/runs", "GET, HEAD, POST"],
    ["DELETE", "/v1/runs/some-run", "GET, HEAD"],
    ["POST", "/livez", "GET, HEAD"],
  ])("%s %s is refused with the methods that would do", async (method, path, allow) => {
    const response = await testApi().call(path, { method });
    expect(response.status).toBe(405);
    expect(response.headers.get("allow")).toBe(allow);
    expect((await problem(response)).code).toBe("request.method-not-allowed");
  });

  test.each([
    "/v1/runs/none",
    "/v1/runs/none/events",
    "/v1/runs/none/logs",
    "/v1/datasets/none",
    "/v1/agents/hq/none",
  ])("%s is not found", async (path) => {
    const response = await testApi().call(path);
    expect(response.status).toBe(404);
    expect((await problem(response)).detail).toContain("none");
  });
});

describe("resources", () => {
  test("documents are applied in the caller's name, or only tried", async () => {
    const { call, services } = testApi();
    const json = {
      documents: [{ file: "p.yaml", text: "kind: pipeline" }],
      attachments: { "p/a.sh": "echo" },
    };
    const response = await call("/v1/apply?dry_run=true", { json });
    expect(await response.json()).toEqual({
      changes: [{ kind: "pipeline", name: "penguins", action: "created", version: DIGEST }],
    });
    await call("/v1/apply", { json });
    expect(services.applied).toEqual([
      { set: json, by: "operator", dryRun: true },
      { set: json, by: "operator", dryRun: false },
    ]);
  });

  test("faults in documents keep their file, line, column and hint", async () => {
    const response = await testApi().call("/v1/apply", {
      json: { documents: [{ file: "p.yaml", text: "broken" }], attachments: {} },
    });
    expect(response.status).toBe(422);
    expect((await problem(response)).errors).toEqual([
      { file: "p.yaml", line: 3, column: 7, detail: "unknown key", hint: "did you mean reads" },
    ]);
  });

  test("a plan is made of documents or of a stored pipeline", async () => {
    const { call } = testApi();
    const stored = await call("/v1/plan", { json: { pipeline: "flights" } });
    expect(await stored.json()).toMatchObject({ plans: [{ pipeline: "flights" }] });
    const given = await call("/v1/plan", { json: { documents: [], attachments: {} } });
    expect(await given.json()).toMatchObject({ plans: [{ pipeline: "penguins" }] });
  });

  test("a list is walked page by page, each item once, though items come and go", async () => {
    const { call, services } = testApi();
    for (const name of ["d", "a", "c", "b", "e"]) services.addResource("dataset", name);
    const seen: string[] = [];
    let cursor: string | null = "";
    while (cursor !== null) {
      const response = await call(`/v1/datasets?limit=2${cursor && `&cursor=${cursor}`}`);
      const page = (await response.json()) as { items: { name: string }[]; nextCursor: string | null };
      seen.push(...page.items.map((item) => item.name));
      cursor = page.nextCursor;
      if (seen.length === 2) services.addResource("dataset", "aa");
    }
    expect(seen).toEqual(["a", "b", "c", "d", "e"]);
  });

  test.each(["nonsense", "WzFd", Buffer.from('["pools","a"]').toString("base64url")])(
    "the cursor %s, which the list did not give out, is refused",
    async (cursor) => {
      const response = await testApi().call(`/v1/datasets?cursor=${cursor}`);
      expect((await problem(response)).code).toBe("request.invalid");
    },
  );

  test("a pipeline comes with its versions, and a version only under its own pipeline", async () => {
    const { call, services } = testApi();
    services.addResource("pipeline", "penguins");
    expect(await (await call("/v1/pipelines/penguins")).json()).toMatchObject({
      versions: [{ version: DIGEST }],
    });
    expect((await call(`/v1/pipelines/penguins/versions/${DIGEST}`)).status).toBe(200);
    expect((await call(`/v1/pipelines/flights/versions/${DIGEST}`)).status).toBe(404);
  });

  test("a resource is deleted by name", async () => {
    const response = await testApi().call("/v1/pools/gpu", { method: "DELETE" });
    expect(await response.json()).toEqual({ kind: "pool", name: "gpu", action: "deleted", version: null });
  });
});

describe("runs", () => {
  test("a run is started with parameters in the caller's name, and its address is told", async () => {
    const response = await testApi().call("/v1/runs", {
      json: { pipeline: "penguins", params: { year: 2007 } },
    });
    expect(response.status).toBe(201);
    expect(response.headers.get("location")).toBe("/v1/runs/run-1");
    expect(await response.json()).toMatchObject({
      id: "run-1",
      params: { year: 2007 },
      createdBy: "operator",
    });
  });

  test("a refused placement is a problem with its own code", async () => {
    const response = await testApi().call("/v1/runs", { json: { pipeline: "unplaceable" } });
    expect(response.status).toBe(422);
    expect((await problem(response)).code).toBe("placement.denied");
  });

  test("what breaks inside is not told to the caller, but can be found in the log", async () => {
    const response = await testApi().call("/v1/runs", { json: { pipeline: "explodes" } });
    const body = await problem(response);
    expect(body).toMatchObject({ status: 500, code: "internal" });
    expect(JSON.stringify(body)).not.toContain("secret");
    expect(body.instance).toBe(`urn:insitu:request:${response.headers.get("x-request-id")}`);
  });

  test("a run is cancelled with or without a reason", async () => {
    const { call, services } = testApi();
    services.addRun("r");
    expect(await (await call("/v1/runs/r/cancel", { method: "POST" })).json()).toMatchObject({
      status: "cancelling",
    });
    expect(await (await call("/v1/runs/r/cancel", { json: { reason: "enough" } })).json()).toMatchObject({
      reason: "enough",
    });
  });
});

describe("the fleet", () => {
  test("a join token is made with sane limits", async () => {
    const { call } = testApi();
    const made = await call("/v1/join-tokens", { json: { environment: "hq" } });
    expect(made.status).toBe(201);
    expect(await made.json()).toEqual({
      id: "0123456789abcdef",
      token: "insitu-join.hq",
      expiresAtMs: 3_600_000,
    });
    expect((await call("/v1/join-tokens", { json: { environment: "hq", uses: 0 } })).status).toBe(400);
  });

  test("readiness names what is not ready", async () => {
    const { app, services } = testApi();
    services.ready = false;
    const response = await app.request("/readyz?verbose");
    expect(response.status).toBe(503);
    expect(await response.json()).toEqual({ status: "not ready", checks: { nats: false, serving: true } });
  });
});

describe("the description", () => {
  test("is OpenAPI 3.1 and covers every route, each with its problem", async () => {
    const response = await testApi().call("/v1/openapi.json");
    const document = (await response.json()) as {
      openapi: string;
      paths: Record<string, Record<string, { responses: object; operationId: string }>>;
    };
    expect(document.openapi).toBe("3.1.0");
    const operations = Object.values(document.paths).flatMap((path) => Object.values(path));
    expect(operations.length).toBe(63);
    expect(new Set(operations.map((operation) => operation.operationId)).size).toBe(operations.length);
    for (const operation of operations) expect(operation.responses).toHaveProperty("default");
  });
});
