/** The commands against a server that speaks HTTP and answers what each test says. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { ERROR_CODES, InsituError } from "../../shared/errors.ts";
import { insitu, json, problem, SmallServer, stream } from "./cli.fixture.ts";
import { offered, runDetail, started, stepView } from "./run-view.fixture.ts";

const ID = "01m85kzyz71kqjw0z19gdzynrg";
const summary = (id: string) => ({ ...runDetail([]), id, status: "succeeded", finishedAtMs: 1_000_500 });
const page = (items: unknown[], nextCursor: string | null = null) => json({ items, nextCursor });

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "insitu-cli-"));
});
afterEach(() => rm(directory, { recursive: true, force: true }));

describe("talking to the server", () => {
  test("the token is sent, gzip is asked for and decoded, Brotli is not asked for", async () => {
    await using server = await SmallServer.start({
      "GET /v1/pools": (response) => {
        const body = gzipSync(JSON.stringify({ items: [], nextCursor: null }));
        response.writeHead(200, { "content-type": "application/json", "content-encoding": "gzip" }).end(body);
      },
    });
    const { code, stdout } = await insitu(["get", "pools", "-o", "json"], {
      server: server.url,
      token: "t0k",
    });
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toEqual([]);
    expect(server.received[0]?.headers).toMatchObject({
      authorization: "Bearer t0k",
      "accept-encoding": "gzip",
    });
  });

  test("an answer in Brotli is refused, not decoded", async () => {
    await using server = await SmallServer.start({
      "GET /v1/pools": (response) => {
        response.writeHead(200, { "content-encoding": "br" }).end("whatever");
      },
    });
    const { code, stderr } = await insitu(["get", "pools"], { server: server.url });
    expect(code).toBe(1);
    expect(stderr).toContain('encoding "br"');
  });

  test("when nobody answers, the message names the server, where the address came from, and what to do", async () => {
    let url: string;
    {
      await using server = await SmallServer.start({});
      url = server.url;
    }
    const { code, stderr, stdout } = await insitu(["get", "pools"], { server: url });
    expect(code).toBe(8);
    expect(stdout).toBe("");
    expect(stderr).toContain(`nothing listens at ${url} (from INSITU_SERVER)`);
    expect(stderr).toContain("insitu dev");
  });

  test.each([
    ["auth.missing", 401, 6],
    ["not-found", 404, 4],
    ["placement.denied", 422, 5],
    ["conflict", 409, 7],
    ["request.invalid", 400, 2],
  ])("a problem %s ends with the exit code of its row", async (problemCode, status, exitCode) => {
    await using server = await SmallServer.start({
      "GET /v1/pools": problem(problemCode, status, "it was like this"),
    });
    const { code, stderr } = await insitu(["get", "pools"], { server: server.url, token: "t" });
    expect(code).toBe(exitCode);
    expect(stderr).toMatch(/^error: /);
  });

  test("a page that has a cursor is followed by the next", async () => {
    await using server = await SmallServer.start({
      "GET /v1/runs": [page([summary(ID)], "more"), page([summary("01m85kzyz71kqjw0z19gdzynrh")])],
    });
    const { stdout } = await insitu(["runs", "list", "-o", "json"], { server: server.url });
    expect(JSON.parse(stdout)).toHaveLength(2);
    expect(server.received[1]?.path).toContain("cursor=more");
  });

  test("a write whose connection broke is sent again under the same idempotency key", async () => {
    await using server = await SmallServer.start({
      "POST /v1/runs": [(response) => void response.destroy(), json(summary(ID), 201)],
    });
    const { code, stdout } = await insitu(["run", "penguins"], { server: server.url });
    expect([code, stdout]).toEqual([0, `${ID}\n`]);
    const keys = server.received.map(({ headers }) => headers["idempotency-key"]);
    expect(keys[0]).toMatch(/^.{16,}$/);
    expect(keys).toEqual([keys[0], keys[0]]);
  });
});

describe("documents", () => {
  const good = "kind: pool\nname: licences\ncapacity: 3\n";

  test("apply posts what it read, of folders to any depth and of standard input, and says what changed", async () => {
    await writeFile(join(directory, "pool.yaml"), good);
    await using server = await SmallServer.start({
      "POST /v1/apply": json({
        changes: [{ kind: "pool", name: "licences", action: "created", version: null }],
      }),
    });
    const options = { server: server.url, cwd: directory, stdin: "kind: pool\nname: gpus\ncapacity: 1\n" };
    const { code, stdout } = await insitu(["apply", "-f", ".", "-f", "-", "--dry-run"], options);
    expect([code, stdout]).toEqual([0, "pool/licences created (dry run)\n"]);
    expect(server.received[0]?.path).toBe("/v1/apply?dry_run=true");
    expect(server.received[0]?.body).toMatchObject({ documents: [{ text: good }, { file: "<stdin>" }] });
  });

  test("errors of all files are told at once with their lines, and nothing is sent", async () => {
    await writeFile(join(directory, "a.yaml"), "kind: pool\nname: a\ncapacty: 3\n");
    await writeFile(join(directory, "b.yaml"), "kind: pol\nname: b\n");
    await using server = await SmallServer.start({});
    const { code, stderr } = await insitu(["apply", "-f", "."], { server: server.url, cwd: directory });
    expect(code).toBe(2);
    expect(stderr).toContain("a.yaml:3:1: error:");
    expect(stderr).toContain("  3 | capacty: 3");
    expect(stderr).toContain("b.yaml:1:");
    expect(server.received).toEqual([]);
  });

  test("faults that the server finds show the line too", async () => {
    await writeFile(join(directory, "pool.yaml"), good);
    const errors = [{ file: "pool.yaml", line: 2, column: 7, detail: "somebody else's name" }];
    await using server = await SmallServer.start({
      "POST /v1/apply": problem("placement.denied", 422, "the set was refused", { errors }),
    });
    const { code, stderr } = await insitu(["apply", "-f", "pool.yaml"], {
      server: server.url,
      cwd: directory,
    });
    expect(code).toBe(5);
    expect(stderr).toContain("pool.yaml:2:7: error: somebody else's name\n  2 | name: licences");
    expect(stderr).toContain("error: the set was refused");
  });

  test("what speaks against a step is told as a list below its line, and not in the message again", async () => {
    await writeFile(join(directory, "pool.yaml"), good);
    const opening = "step pool reads rows";
    const hint = "hq, lab: rows must stay in DE\nno environment may run it as it is written";
    const errors = [{ file: "pool.yaml", line: 2, column: 7, detail: opening, hint }];
    await using server = await SmallServer.start({
      "POST /v1/apply": problem("placement.denied", 422, `${opening}; and much more`, { errors }),
    });
    const { code, stderr } = await insitu(["apply", "-f", "pool.yaml"], {
      server: server.url,
      cwd: directory,
    });
    expect(code).toBe(5);
    expect(stderr).toBe(
      "pool.yaml:2:7: error: step pool reads rows\n  2 | name: licences\n    |       ^\n" +
        "    = hq, lab: rows must stay in DE\n    = no environment may run it as it is written\n\n" +
        "1 error in 1 file\n",
    );
  });

  test("a fault that the message tells already is not told twice; several are told one by one", async () => {
    const faults = [
      { pointer: "/params/day", detail: "parameter day is required" },
      { pointer: "/params/n", detail: "parameter n must be a number" },
    ];
    const [first] = faults;
    await using server = await SmallServer.start({
      "POST /v1/runs": [
        problem("request.invalid", 400, first!.detail, { errors: [first] }),
        problem("request.invalid", 400, "2 parameters are not valid", { errors: faults }),
      ],
    });
    const one = await insitu(["run", "p"], { server: server.url });
    expect([one.code, one.stderr]).toEqual([2, "error: parameter day is required\n"]);
    const two = await insitu(["run", "p"], { server: server.url });
    expect(two.stderr).toBe(
      "error: 2 parameters are not valid\n" +
        "  /params/day: parameter day is required\n  /params/n: parameter n must be a number\n",
    );
  });

  test("a plan with a step that may run nowhere ends with 5", async () => {
    const view = { pipeline: "p", version: "v", policyVersion: "w", placeable: false, steps: [] };
    await using server = await SmallServer.start({ "POST /v1/plan": json({ plans: [view] }) });
    expect((await insitu(["plan", "p"], { server: server.url })).code).toBe(5);
    expect(server.received[0]?.body).toEqual({ pipeline: "p" });
  });
});

describe("runs", () => {
  const events = (seq: number, list: unknown[]) =>
    `id: ${seq}\ndata: ${JSON.stringify({ v: 1, events: list })}\n\n`;
  const end = "event: end\ndata: {}\n\n";
  const finished = (status: string) => ({ kind: "run.finished", atMs: 1_000_900, status, reason: "" });
  const running = runDetail([stepView("one")]);

  test("a watch goes on where it was after its connection broke, and shows no change twice", async () => {
    await using server = await SmallServer.start({
      [`GET /v1/runs/${ID}`]: [
        json(running),
        json({ ...running, status: "succeeded", finishedAtMs: 1_000_900 }),
      ],
      [`GET /v1/runs/${ID}/events`]: [
        stream("text/event-stream", [events(2, [offered("one", "hq")])], "cut"),
        stream("text/event-stream", [
          events(2, [offered("one", "hq")]),
          events(3, [started("one", "hq/a")]),
          events(4, [{ kind: "step.succeeded", atMs: 1_000_800, step: "one" }, finished("succeeded")]),
          end,
        ]),
      ],
    });
    const { code, stdout, stderr } = await insitu(["runs", "watch", ID], { server: server.url });
    expect(code).toBe(0);
    expect(stderr).toBe(
      `one  offered  hq\none  running  hq/a\none  succeeded  hq/a  600 ms\nrun ${ID}  succeeded\n`,
    );
    expect(stdout).toBe(`run/${ID} succeeded in 900 ms\n`);
    const ids = server.received
      .filter(({ path }) => path.endsWith("/events"))
      .map(({ headers }) => headers["last-event-id"]);
    expect(ids).toEqual(["1", "2"]);
  });

  test("a run that does not succeed ends the wait with 3", async () => {
    await using server = await SmallServer.start({
      "POST /v1/runs": json(running, 201),
      [`GET /v1/runs/${ID}`]: [
        json(running),
        json({ ...running, status: "failed", finishedAtMs: 1_000_900 }),
      ],
      [`GET /v1/runs/${ID}/events`]: stream("text/event-stream", [events(2, [finished("failed")]), end]),
    });
    const { code, stdout, stderr } = await insitu(["run", "penguins", "--wait"], { server: server.url });
    expect(code).toBe(3);
    expect(stdout).toContain("failed");
    expect(stderr).toContain(`insitu runs show ${ID}`);
  });

  test("an interrupted watch says how to go on and how to cancel, and ends with 130", async () => {
    const interrupt = new AbortController();
    await using server = await SmallServer.start({
      [`GET /v1/runs/${ID}`]: json(running),
      [`GET /v1/runs/${ID}/events`]: (response) => {
        response.writeHead(200, { "content-type": "text/event-stream" }).write("retry: 1000\n\n");
        interrupt.abort(new InsituError("cancelled", "interrupted"));
      },
    });
    const options = { server: server.url, signal: interrupt.signal, tty: true };
    const { code, stderr } = await insitu(["runs", "watch", ID], options);
    expect(code).toBe(130);
    expect(stderr).toContain(`insitu runs cancel ${ID}`);
    expect(stderr.lastIndexOf("\u001b[?25h")).toBeGreaterThan(stderr.lastIndexOf("\u001b[?25l"));
  });

  test("the beginning of an id will do when it is the only one, and `last` is the newest", async () => {
    const other = "01m85m46w5yzrrmcpnakzrkpz0";
    await using server = await SmallServer.start({
      "GET /v1/runs": page([summary(ID), summary(other)]),
      [`GET /v1/runs/${other}`]: json(summary(other)),
      [`GET /v1/runs/${ID}`]: json(summary(ID)),
    });
    const show = (run: string) => insitu(["runs", "show", run, "-o", "json"], { server: server.url });
    expect(JSON.parse((await show("01m85m")).stdout).id).toBe(other);
    expect(JSON.parse((await show("last")).stdout).id).toBe(ID);
    const several = await show("01m85");
    expect([several.code, several.stderr]).toEqual([2, expect.stringContaining("2 runs begin with")]);
    expect((await show("zzz")).code).toBe(4);
  });

  test("a version of the pipeline can be named, which is not this program's own", async () => {
    const version = `sha256:${"ab".repeat(32)}`;
    await using server = await SmallServer.start({ "POST /v1/runs": json(summary(ID), 201) });
    await insitu(["run", "penguins", "--version", version], { server: server.url });
    expect(server.received[0]?.body).toEqual({ pipeline: "penguins", version, params: {} });
    expect((await insitu(["--version"])).stdout).toMatch(/^insitu \d/);
  });

  test("parameters get the type that the pipeline declares", async () => {
    const params = { late: { type: "number" }, dry: { type: "boolean" }, note: { type: "string" } };
    await using server = await SmallServer.start({
      "GET /v1/pipelines/flights": json({ spec: { params } }),
      "POST /v1/runs": json(summary(ID), 201),
    });
    const run = (...given: string[]) =>
      insitu(["run", "flights", ...given.flatMap((one) => ["-p", one])], { server: server.url });
    await run("late=30", "dry=true", "note=a=b");
    expect(server.received.at(-1)?.body).toMatchObject({ params: { late: 30, dry: true, note: "a=b" } });
    const wrong = await run("late=soon");
    expect([wrong.code, wrong.stderr]).toEqual([2, expect.stringContaining("late takes a number")]);
  });
});

describe("logs", () => {
  const done = { ...runDetail([stepView("one"), stepView("two")]), status: "succeeded" };
  const bytes = Buffer.from([0, 255, 27, 91, 50, 74, 10, 195]);
  const line = (seq: number, data: Uint8Array, change: object = {}) =>
    `${JSON.stringify({ step: "one", attempt: 1, epoch: 1, seq, atMs: 0, stream: "stdout", data: Buffer.from(data).toString("base64"), droppedBytes: 0, ...change })}\n`;

  test("of one step the very bytes come out, over a connection that broke too", async () => {
    await using server = await SmallServer.start({
      [`GET /v1/runs/${ID}`]: json(done),
      [`GET /v1/runs/${ID}/logs`]: [
        stream("application/x-ndjson", [line(1, bytes), line(2, bytes).slice(0, 20)], "cut"),
        stream("application/x-ndjson", [line(1, bytes), line(2, bytes)]),
      ],
    });
    const { code, out } = await insitu(["runs", "logs", ID, "one"], { server: server.url });
    expect(code).toBe(0);
    expect(out).toEqual(Buffer.concat([bytes, bytes]));
  });

  test("on a terminal control characters are shown, not sent; --raw sends them", async () => {
    await using server = await SmallServer.start({
      [`GET /v1/runs/${ID}`]: json(done),
      [`GET /v1/runs/${ID}/logs`]: stream("application/x-ndjson", [line(1, Buffer.from("a\u001b[2Jb\n"))]),
    });
    const logs = (...flags: string[]) =>
      insitu(["runs", "logs", ID, "one", ...flags], { server: server.url, tty: true });
    expect((await logs()).stdout).toBe("a^[[2Jb\n");
    expect((await logs("--raw")).stdout).toBe("a\u001b[2Jb\n");
  });

  test("several steps are told apart, one stream can be picked, and what was given up is said", async () => {
    await using server = await SmallServer.start({
      [`GET /v1/runs/${ID}`]: json(done),
      [`GET /v1/runs/${ID}/logs`]: stream("application/x-ndjson", [
        line(1, Buffer.from("out\n"), { droppedBytes: 2_048, droppedLines: 31 }),
        line(2, Buffer.from("err\n"), { stream: "stderr" }),
        line(1, Buffer.from("other\n"), { step: "two" }),
      ]),
    });
    const all = await insitu(["runs", "logs", ID], { server: server.url });
    expect(all.stdout).toBe(
      "one | -- 31 lines dropped here (2.0 KiB) --\none | out\none stderr | err\ntwo | other\n",
    );
    expect(all.stderr).toContain("31 lines dropped: 2.0 KiB of these logs were given up");
    const picked = await insitu(["runs", "logs", ID, "--stream", "stderr"], { server: server.url });
    expect(picked.stdout).toBe("one stderr | err\n");
  });

  test("a step that the run does not have is named, with those that it has", async () => {
    await using server = await SmallServer.start({ [`GET /v1/runs/${ID}`]: json(done) });
    const { code, stderr } = await insitu(["runs", "logs", ID, "three"], { server: server.url });
    expect([code, stderr]).toEqual([4, `error: there is no step three in run ${ID}; there are one, two\n`]);
  });
});

describe("join tokens", () => {
  const AT_MS = 1_700_000_000_000;
  const valid = {
    id: "0f3a9c27d1e4b586",
    environment: "hq",
    state: "valid",
    approval: false,
    uses: 3,
    usesLeft: 2,
    createdBy: "ada",
    createdAtMs: AT_MS,
    expiresAtMs: AT_MS + 3_600_000,
    revoked: null,
    usedBy: [{ agent: "hq/one", fingerprint: "sha256:ab", atMs: AT_MS + 1 }],
  };
  const revoked = { ...valid, id: "1f", state: "revoked", revoked: { atMs: AT_MS + 2, by: "bob\u001b[2J" } };

  test("are listed while they let somebody in, with --all also afterwards", async () => {
    await using server = await SmallServer.start({ "GET /v1/join-tokens": page([revoked, valid]) });
    const some = await insitu(["join-token", "list"], { server: server.url });
    expect(some.stdout).toMatch(/0f3a9c27d1e4b586 +hq +valid +2\/3/);
    expect(some.stdout).not.toContain("revoked");
    const all = await insitu(["join-token", "list", "--all", "-o", "json"], { server: server.url });
    expect(JSON.parse(all.stdout)).toEqual([revoked, valid]);
    const none = await insitu(["join-token", "list", "--environment", "lab"], { server: server.url });
    expect(none.stderr).toContain("No join token lets anybody in now");
  });

  test("are shown with who made them and who came with them, and revoked by their id", async () => {
    await using server = await SmallServer.start({
      "GET /v1/join-tokens/1f": json(revoked),
      "DELETE /v1/join-tokens/1f": json(revoked),
    });
    const shown = await insitu(["join-token", "show", "1f"], { server: server.url });
    expect(shown.stdout).toMatch(/uses left +2 of 3\n/);
    expect(shown.stdout).toMatch(/made .* by ada\n/);
    expect(shown.stdout).toMatch(/used by +hq\/one at .*, with the key sha256:ab\n/);
    expect(shown.stdout).not.toContain("\u001b");
    const done = await insitu(["join-token", "revoke", "1f"], { server: server.url });
    expect(done).toMatchObject({ code: 0, stdout: "join token 1f is revoked\n" });
    expect(done.stderr).toContain("hq/one");
  });

  test("whose whole text is given in place of the id are refused, and sent nowhere", async () => {
    await using server = await SmallServer.start({});
    const { code, stderr } = await insitu(["join-token", "revoke", "insitu1.c2VjcmV0"], {
      server: server.url,
    });
    expect(code).toBe(2);
    expect(stderr).toContain("keep it out of command lines");
    expect(server.received).toEqual([]);
  });
});

describe("the authority", () => {
  test("a chain that is not taken is named by its file, and one with a private key is sent nowhere", async () => {
    await using server = await SmallServer.start({
      "POST /v1/authority/import": problem(
        "request.invalid",
        400,
        "the chain is not taken: certificate 1 of 2",
      ),
    });
    await writeFile(join(directory, "chain.pem"), "-----BEGIN CERTIFICATE-----\n");
    await writeFile(join(directory, "both.pem"), "-----BEGIN EC PRIVATE KEY-----\n");
    const take = (file: string) => insitu(["ca", "import", file], { server: server.url, cwd: directory });
    expect(await take("chain.pem")).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("chain.pem: the chain is not taken: certificate 1 of 2"),
    });
    expect(server.received).toHaveLength(1);
    expect((await take("both.pem")).stderr).toContain("both.pem holds a private key");
    expect((await take("none.pem")).stderr).toContain("none.pem cannot be read (ENOENT)");
    expect(server.received).toHaveLength(1);
  });
});

describe("help and completion", () => {
  test("the exit codes of the table are the documented ones", async () => {
    const { stdout } = await insitu(["help", "exit-codes"]);
    for (const code of ERROR_CODES) {
      const { exitCode } = new InsituError(code, "");
      expect(stdout, `${code} gives ${exitCode}`).toMatch(new RegExp(`^ +${exitCode}  `, "m"));
    }
  });

  test.each([
    ["run", "error: runs cannot be deleted; `insitu runs cancel` stops one\n"],
    ["agents", "error: agents cannot be deleted\n"],
    ["spool", "error: there is no kind spool; did you mean 'pool'?\n"],
    [
      "thing",
      "error: there is no kind thing; there are pipeline, dataset, environment, pool, access-policy\n",
    ],
  ])("delete %s is refused, and what can be deleted is told", async (kind, told) => {
    const { code, stderr } = await insitu(["delete", kind, "x"]);
    expect([code, stderr]).toEqual([2, told]);
    const { stdout } = await insitu(["delete", "--help"]);
    expect(stdout).toContain(
      "Kinds: pipelines, datasets, environments, pools, access-policies. Runs and agents cannot",
    );
  });

  test("an unknown command or flag gives 2", async () => {
    const { code, stderr } = await insitu(["rnu"]);
    expect([code, stderr]).toEqual([2, expect.stringContaining("Did you mean run?")]);
    expect((await insitu(["runs", "list", "--lmit", "3"])).code).toBe(2);
  });

  test("completion offers commands, kinds and the names that the server has", async () => {
    await using server = await SmallServer.start({
      "GET /v1/pipelines": page([{ kind: "pipeline", name: "penguins" }]),
    });
    const complete = async (...words: string[]) => {
      const { stdout } = await insitu(["__complete", "--", ...words], { server: server.url });
      return stdout.split("\n").flatMap((one) => (one === "" ? [] : [one.split("\t")[0]]));
    };
    expect(await complete("pl")).toEqual(["plan"]);
    expect(await complete("get", "po")).toEqual(["pools"]);
    expect(await complete("get", "r")).toEqual(["runs"]);
    expect(await complete("delete", "r")).toEqual([]);
    expect(await complete("get", "pipeline", "")).toEqual(["penguins"]);
    expect(await complete("run", "pen")).toEqual(["penguins"]);
    expect(await complete("runs", "list", "--st")).toEqual(["--status"]);
    expect(await complete("apply", "-f", "examples/pen")).toEqual([":files"]);
    expect(await complete("runs", "list", "--status", "fa")).toEqual(["failed"]);
  });

  test("completion is silent when no server is there", async () => {
    const { code, stdout, stderr } = await insitu(["__complete", "--", "run", ""], {
      server: "http://127.0.0.1:1",
    });
    expect([code, stdout, stderr]).toEqual([0, "", ""]);
  });
});
