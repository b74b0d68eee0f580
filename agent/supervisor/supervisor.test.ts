/** Supervisors and those who ask them, of this release and of the one before, over real sockets. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { afterEach, beforeEach, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { type TestDirectory, testDirectory } from "../agent.fixture.ts";
import { Supervisors } from "./client.ts";
import type { FrameSink } from "./followed-step.ts";
import { FormerSupervisor } from "./former-supervisor.fixture.ts";
import { identityOf } from "./process-identity.ts";
import { type StepSpec, SUPERVISOR_REVISION } from "./protocol.ts";
import type { Frame } from "./spool.ts";
import { Supervisor } from "./supervisor.ts";

let directory: TestDirectory;
let own: string;
let running: Supervisor[];
const clients: Supervisors[] = [];

beforeEach(() => {
  directory = testDirectory();
  own = join(directory.path, "supervisors", "one");
  mkdirSync(own, { recursive: true });
  running = [];
});
afterEach(async () => {
  for (const client of clients.splice(0)) client.close();
  await Promise.all(running.map((supervisor) => supervisor.close("end of test")));
  directory[Symbol.dispose]();
});

/** One that an earlier process of the agent has left running. */
async function supervise(): Promise<string> {
  const socketPath = join(own, "socket");
  const left = new Supervisor({
    directory: own,
    socketPath,
    software: "test",
    clock: systemClock,
    onIdle: () => undefined,
  });
  await left.start();
  running.push(left);
  const about = {
    socketPath,
    pid: process.pid,
    revision: SUPERVISOR_REVISION,
    process: identityOf(process.pid),
  };
  writeFileSync(join(own, "about.json"), JSON.stringify(about));
  return socketPath;
}

async function agent(): Promise<Supervisors> {
  const client = new Supervisors({
    clock: systemClock,
    stateDir: directory.path,
    software: "test",
    launch: (_directory, _socketPath, failed) => failed(new Error("not in this test")),
  });
  clients.push(client);
  await client.find();
  return client;
}

class Sink implements FrameSink {
  readonly storedOffset = 0;
  text = "";
  frame({ data }: Frame): boolean {
    this.text += data.toString();
    return true;
  }
  onDrain(): void {}
}

function specOf(key: string, text: string): StepSpec {
  const workspace = join(directory.path, "work", key);
  mkdirSync(workspace, { recursive: true });
  return {
    key,
    directory: join(workspace, "supervised"),
    argv: ["sh", "-c", text],
    env: { PATH: process.env.PATH ?? "" },
    cwd: workspace,
    marker: key,
    timeoutMs: 60_000,
    killGraceMs: 100,
  };
}
const exited = (code: number) => ({ kind: "exited", record: { code } });
const fileOf = (name: string): string => join(directory.path, name);
async function there(path: string): Promise<void> {
  while (!existsSync(path)) await systemClock.sleep(5);
}

test("the same request again, from this agent or its next process, starts nothing", async () => {
  await supervise();
  const spec = specOf(
    "k",
    `echo ran >> ${fileOf("ran")}; while [ ! -e ${fileOf("go")} ]; do sleep 0.02; done`,
  );
  const first = await agent();
  const one = await first.start(spec, new Sink());
  await there(fileOf("ran"));
  const two = await (await agent()).start(spec, new Sink());
  writeFileSync(fileOf("go"), "");
  expect([await one.ending, await two.ending]).toMatchObject([exited(0), exited(0)]);
  expect(await (await first.start(spec, new Sink())).ending).toMatchObject(exited(0));
  expect(readFileSync(fileOf("ran"), "utf8")).toBe("ran\n");
});

test("a step whose directory cannot be made does not begin, says why, and no other step falls with it", async () => {
  await supervise();
  const client = await agent();
  const other = await client.start(
    specOf("other", `while [ ! -e ${fileOf("go")} ]; do sleep 0.02; done; exit 5`),
    new Sink(),
  );
  const spec = specOf("k", `echo ran > ${fileOf("ran")}`);
  rmSync(join(directory.path, "work", "k"), { recursive: true });
  const { ending } = await client.start(spec, new Sink());
  expect(await ending).toMatchObject({ kind: "not-begun", trouble: { code: "ENOENT" } });
  writeFileSync(fileOf("go"), "");
  expect(await other.ending).toMatchObject(exited(5));
  expect(existsSync(fileOf("ran"))).toBe(false);
});

test("what an agent has given up before it began is begun by nobody, also when the request comes late", async () => {
  await supervise();
  const client = await agent();
  const spec = specOf("k", `echo ran > ${fileOf("ran")}`);
  expect(client.resume("k", spec.directory, 0, new Sink())).toBeUndefined();
  expect(await (await client.start(spec, new Sink())).ending).toMatchObject({ kind: "lost" });
  expect(existsSync(fileOf("ran"))).toBe(false);
});

test("a connection that is lost while both live is made again, and costs no output", async () => {
  const socketPath = await supervise();
  const between = new Set<Socket>();
  const way = createServer((socket) => {
    const onward = connect(socketPath);
    for (const end of [socket, onward]) between.add(end.on("error", () => undefined));
    socket.pipe(onward).pipe(socket);
  });
  await new Promise<void>((resolve) => way.listen(join(own, "way"), resolve));
  const about = {
    socketPath: join(own, "way"),
    pid: process.pid,
    revision: 4,
    process: identityOf(process.pid),
  };
  writeFileSync(join(own, "about.json"), JSON.stringify(about));
  const client = await agent();
  const sink = new Sink();
  const text = `echo one; while [ ! -e ${fileOf("go")} ]; do sleep 0.02; done; echo two; exit 6`;
  const step = await client.start(specOf("k", text), sink);
  while (sink.text !== "one\n") await systemClock.sleep(5);
  for (const socket of between) socket.destroy();
  writeFileSync(fileOf("go"), "");
  expect(await step.ending).toMatchObject(exited(6));
  expect(sink.text).toBe("one\ntwo\n");
  way.close();
});

test("after a restart of the host the step is lost, and the process that has its supervisor's number is left alone", async () => {
  const bystander = spawn("sleep", ["600"], { stdio: "ignore" });
  await once(bystander, "spawn");
  try {
    const by = { ...identityOf(bystander.pid!), bootId: "00000000-0000-0000-0000-000000000000" };
    const about = { socketPath: join(own, "socket"), pid: by.pid, revision: 4, process: by };
    writeFileSync(join(own, "about.json"), JSON.stringify(about));
    const spec = specOf("k", "true");
    mkdirSync(spec.directory);
    writeFileSync(join(spec.directory, "started.json"), JSON.stringify({ v: 1, supervisor: "one", by }));
    const step = (await agent()).resume("k", spec.directory, 0, new Sink());
    expect(await step?.ending).toMatchObject({
      kind: "lost",
      why: expect.stringMatching(/host was restarted/),
    });
    expect(existsSync(own)).toBe(false);
    expect(bystander.exitCode ?? bystander.signalCode).toBeNull();
  } finally {
    bystander.kill("SIGKILL");
  }
});

test("an agent of the release before gets along with a supervisor of this one", async () => {
  const socketPath = await supervise();
  const spec = specOf("k", "echo hello; exit 3");
  const socket = connect(socketPath);
  const heard: Record<string, unknown>[] = [];
  const tell = (message: object): boolean => socket.write(`${JSON.stringify(message)}\n`);
  for await (const line of createInterface({ input: socket })) {
    const message = JSON.parse(line) as Record<string, unknown>;
    heard.push(message);
    if (message.say === "hello") {
      expect(message.protocol).toBe(1); // another number, and it would take the supervisor for dead
      tell({ op: "attach", key: "k", offset: 0 }); // in this order
      tell({ op: "start", spec });
    }
    if (message.say === "exit") break;
  }
  expect(heard.map(({ say }) => say)).toEqual(expect.arrayContaining(["unknown", "output", "exit"]));
  expect(JSON.parse(readFileSync(join(spec.directory, "exit.json"), "utf8"))).toMatchObject({
    v: 1,
    code: 3,
  });
  socket.destroy();
});

test("an agent of this release takes up, ends and begins steps with a supervisor of the release before", async () => {
  const former = new FormerSupervisor();
  await former.listen(own);
  try {
    const waiting = specOf(
      "k",
      `echo one; while [ ! -e ${fileOf("go")} ]; do sleep 0.02; done; echo two; exit 7`,
    );
    await startThere(join(own, "socket"), [waiting, specOf("long", "exec sleep 600")]);
    while (former.started.length < 2) await systemClock.sleep(5);
    const client = await agent();
    const sink = new Sink();
    const step = client.resume("k", waiting.directory, 0, sink);
    while (sink.text !== "one\n") await systemClock.sleep(5);
    writeFileSync(fileOf("go"), "");
    expect(await step?.ending).toMatchObject(exited(7));
    expect(sink.text).toBe("one\ntwo\n");
    const long = client.resume("long", join(directory.path, "work", "long", "supervised"), 0, new Sink());
    while (long?.stop("cancelled", "by ada") !== true) await systemClock.sleep(5);
    expect(await long.ending).toMatchObject({ kind: "exited", record: { stopped: { reason: "cancelled" } } });
    // It would not know all that is said of a step: none is given to it.
    await expect(client.start(specOf("new", "true"), new Sink())).rejects.toThrow(/not in this test/);
    expect(former.started).toEqual(["k", "long"]);
    // What it never heard of did not begin.
    expect(
      client.resume("never", join(directory.path, "work", "never", "supervised"), 0, new Sink()),
    ).toBeUndefined();
  } finally {
    former.close();
  }
});

/** As an agent of the release before did, which then ended. */
async function startThere(socketPath: string, specs: StepSpec[]): Promise<void> {
  const socket = connect(socketPath);
  for (const spec of specs) socket.write(`${JSON.stringify({ op: "start", spec })}\n`);
  socket.end();
  socket.resume();
  await once(socket, "close");
}
