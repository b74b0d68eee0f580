/** Reports are what their agent signed, to whoever runs NATS and to whoever reads the history of a run later. */
import { execFile } from "node:child_process";
import { createPublicKey, generateKeyPairSync, sign } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import type { PoisonView } from "../../control-plane/api/schemas.ts";
import { loadConfig, type ServerConfig } from "../../control-plane/config.ts";
import { connectNats } from "../../control-plane/store/jetstream.ts";
import { runningTarget } from "../../control-plane/store/nats-target.ts";
import type { RunEvent } from "../../shared/engine/events.ts";
import { agentUri } from "../../shared/wire/agent-uri.ts";
import type { Outcome, ReportPayload } from "../../shared/wire/attempt.ts";
import { reportBytes, reportKeyId, signedReport, verifyKept } from "../../shared/wire/report-signature.ts";
import { STREAMS, shardOf, subjects } from "../../shared/wire/subjects.ts";
import { Plant } from "../support/plant.ts";
import { outcome } from "../support/specs.ts";

const DIST = fileURLToPath(new URL("../../dist", import.meta.url));
const LIMIT_MS = 60_000;
const WHO = { environment: "site", name: "only" };

const LIE: Outcome = outcome({ startedAtMs: 1, finishedAtMs: 2 });

const isOf =
  <K extends RunEvent["kind"]>(kind: K) =>
  (event: RunEvent): event is Extract<RunEvent, { kind: K }> =>
    event.kind === kind;

test("whoever writes to NATS ends no attempt, and the signature of the one that ended stands in its history", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = new Plant({
    dist: DIST,
    serverFlags: ["--require-signed-reports"],
    env: { INSITU_LOG_LEVEL: "error" },
  });
  await plant.startServer();
  const gate = join(plant.directory, "gate");
  const script =
    'while [ ! -e "$GATE" ]; do sleep 0.02; done; printf %s "{\\"mean\\": 4}" > "$INSITU_OUTPUT_DIR/mean"; exit 0';
  const wait = { id: "wait", environment: "site", run: ["sh", "-ec", script], env: { GATE: gate } };
  const pipeline = {
    kind: "pipeline",
    name: "gated",
    steps: [{ ...wait, outputs: { mean: { type: "json", maxBytes: 64 } } }],
  };
  await plant.apply({ kind: "environment", name: "site", jurisdiction: "DE" }, pipeline);
  await plant.startAgent(WHO.environment, WHO.name);
  const { id: runId } = await plant.start("gated");
  const begun = await plant.events(runId, (events) => events.some(isOf("attempt.started")));
  const { attempt, epoch } = begun.find(isOf("attempt.started"))!;
  const lease = { runId, stepId: "wait", attempt, epoch };

  // The account of the control plane itself: nobody can do more in NATS.
  const config = loadConfig(["--data", join(plant.directory, "server")], {}) as ServerConfig;
  await using connection = Object.assign(
    await connectNats({ ...(await runningTarget(config)), name: "test" }),
    { [Symbol.asyncDispose]: () => connection.close() },
  );
  const own = generateKeyPairSync("ed25519");
  const uri = agentUri("insitu.local", WHO);
  const report: ReportPayload = { kind: "finished", lease, outcome: LIE };
  const signature = sign(null, signedReport(uri, Buffer.from(JSON.stringify(report))), own.privateKey);
  const signed = {
    keyId: reportKeyId(own.publicKey.export({ type: "spki", format: "der" })),
    signature: signature.toString("base64"),
  };
  const agent = "site/only";
  for (const item of [
    { agent, report },
    { agent, report, signed },
  ])
    await connection.jetstream().publish(subjects.inbox(shardOf(runId)), JSON.stringify(item));
  const list = async () => ((await plant.call("GET", "/v1/poison")) as { items: PoisonView[] }).items;
  await expect
    .poll(async () => (await list()).map(({ source, from }) => `${source} ${from}`))
    .toEqual(["inbox site/only", "inbox site/only"]);
  const { streams } = await connection.jetstreamManager();
  await expect.poll(async () => (await streams.info(STREAMS.inbox)).state.messages).toBe(0);
  const at = ["--server", plant.url, "--token", plant.token];
  const show = await promisify(execFile)(process.execPath, [
    join(DIST, "insitu.js"),
    "agents",
    "show",
    agent,
    ...at,
  ]);
  expect(show.stdout).toMatch(/reports +signed\n.*reports refused +1 not signed, 1 not as signed\n/);

  writeFileSync(gate, "");
  const events = await plant.events(runId, () => false);
  expect(events.filter(isOf("attempt.finished"))).toHaveLength(1);
  const end = events.find(isOf("attempt.finished"))!;
  expect(end.outcome.outputs).toHaveProperty("mean");
  const key = createPublicKey(
    readFileSync(join(plant.directory, "sites", "site", "only", "identity", "report-key.pem")),
  );
  const verifies = (outcome: Outcome) =>
    verifyKept(key, uri, reportBytes({ kind: "finished", lease, outcome }), end.signed!);
  expect(end.signed?.payload).toBeUndefined();
  expect(verifies(end.outcome)).toBe(true);
  expect(verifies({ ...end.outcome, exitCode: 1 })).toBe(false);
  const start = events.find(isOf("attempt.started"))!;
  const startedAt = (atMs: number) =>
    verifyKept(key, uri, reportBytes({ kind: "started", lease, atMs }), start.signed!);
  expect(startedAt(start.reportedAtMs!)).toBe(true);
  expect(startedAt(start.reportedAtMs! + 1)).toBe(false);
});

test("a log that was changed at NATS is not shown: insitu runs logs names the chunk, and fails", {
  timeout: LIMIT_MS,
}, async () => {
  await using plant = new Plant({ dist: DIST, env: { INSITU_LOG_LEVEL: "error" } });
  await plant.startServer();
  const say = { environment: "site", run: ["sh", "-ec", "echo the truth"] };
  const steps = [
    { id: "first", ...say },
    { id: "second", ...say },
  ];
  await plant.apply(
    { kind: "environment", name: "site", jurisdiction: "DE" },
    { kind: "pipeline", name: "told", steps },
  );
  await plant.startAgent(WHO.environment, WHO.name);
  const { id: runId } = await plant.start("told");
  await plant.events(runId, () => false);
  const logs = () => {
    const argv = [
      join(DIST, "insitu.js"),
      "runs",
      "logs",
      runId,
      "--server",
      plant.url,
      "--token",
      plant.token,
    ];
    return promisify(execFile)(process.execPath, argv).then(
      ({ stdout, stderr }) => ({ code: 0, stdout, stderr }),
      ({ code, stdout, stderr }: { code: number; stdout: string; stderr: string }) => ({
        code,
        stdout,
        stderr,
      }),
    );
  };
  await expect.poll(logs).toMatchObject({ code: 0, stdout: expect.stringMatching(/(the truth\n.*){2}/s) });

  const config = loadConfig(["--data", join(plant.directory, "server")], {}) as ServerConfig;
  await using connection = Object.assign(
    await connectNats({ ...(await runningTarget(config)), name: "test" }),
    { [Symbol.asyncDispose]: () => connection.close() },
  );
  const { streams } = await connection.jetstreamManager();
  const subject = subjects.log(runId, "first", 1);
  const stored = await streams.getMessage(STREAMS.logs, { last_by_subj: subject });
  stored.header.delete("Nats-Msg-Id");
  const lie = Buffer.from(Buffer.from(stored.data).toString("latin1").replace("truth", "lies!"), "latin1");
  await connection.jetstream().publish(subject, lie, { headers: stored.header });
  await streams.deleteMessage(STREAMS.logs, stored.seq);
  const read = await logs();
  expect(read.stdout).toContain("the truth");
  expect(read.stdout).not.toContain("lies");
  expect(read.stdout).toMatch(/not shown here: entries 1 to 1 of attempt 1 of step first/);
  expect(read.code).toBe(1);
  expect(read.stderr).toContain("it is not what site/only signed");
  expect(read.stderr).toContain("insitu poison list");
});
