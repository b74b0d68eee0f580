/** The agent's side of supervision: supervisors that do not start, and those that live and say nothing. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { type TestDirectory, testDirectory } from "../agent.fixture.ts";
import { Supervisors } from "./client.ts";
import type { FrameSink } from "./followed-step.ts";
import type { ExitRecord, StepSpec } from "./protocol.ts";
import { type Frame, SpoolWriter } from "./spool.ts";
import { EXIT_FILE, FRAMES } from "./supervisor.ts";

let directory: TestDirectory;
const children: ChildProcess[] = [];
beforeEach(() => {
  directory = testDirectory();
});
afterEach(async () => {
  for (const child of children.splice(0)) {
    if (child.exitCode !== null || child.signalCode !== null) continue;
    child.kill("SIGKILL");
    await once(child, "exit");
  }
  directory[Symbol.dispose]();
});

function supervisors(launch: (failed: (why: Error) => void) => void = () => undefined): Supervisors {
  return new Supervisors({
    clock: systemClock,
    stateDir: directory.path,
    software: "test",
    launch: (_directory, _socketPath, failed) => launch(failed),
  });
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

const SPEC: StepSpec = {
  key: "k",
  directory: "",
  argv: ["true"],
  env: {},
  cwd: "/",
  marker: "k",
  timeoutMs: 1_000,
  killGraceMs: 100,
};
const RECORD: ExitRecord = {
  v: 1,
  code: 3,
  signal: null,
  stopped: null,
  error: null,
  startedAtMs: 1,
  endedAtMs: 2,
  end: 0,
  droppedBytes: 0,
};

test("a supervisor that cannot be started is told at once, with what to do", async () => {
  const broken = supervisors((failed) => failed(new Error("spawn /usr/bin/node ENOENT")));
  const started = broken.start({ ...SPEC, directory: join(directory.path, "s") }, new Sink());
  await expect(started).rejects.toMatchObject({
    code: "unavailable",
    message: expect.stringMatching(/spawn .* ENOENT.*restart the agent/),
  });
});

/** A process that is the supervisor of its directory by its command line, and never speaks as one. */
async function living(hello?: string): Promise<ChildProcess> {
  const home = join(directory.path, "supervisors", "old");
  mkdirSync(home, { recursive: true });
  const socketPath = join(home, "socket");
  const child = spawn("sleep", ["600"], { argv0: home, stdio: "ignore" });
  children.push(child);
  await once(child, "spawn");
  writeFileSync(join(home, "about.json"), JSON.stringify({ socketPath, pid: child.pid }));
  if (hello !== undefined) {
    const server = createServer((socket) => socket.on("error", () => undefined).write(`${hello}\n`));
    await new Promise<void>((resolve) => server.listen(socketPath, resolve));
    server.unref();
  }
  return child;
}

function written(text: string): { home: string; end: number } {
  const home = join(directory.path, "work", "supervised");
  mkdirSync(home, { recursive: true });
  const spool = new SpoolWriter(join(home, FRAMES));
  spool.append("stdout", 1, Buffer.from(text));
  spool.close();
  return { home, end: spool.end };
}

test.each([
  ["of another protocol", '{"say":"hello","protocol":99,"software":"later","pid":1}'],
  ["that does not listen any more", undefined],
])(
  "the steps of a living supervisor %s are followed by what lies on disk, to their true end",
  async (_, hello) => {
    await living(hello);
    const client = supervisors();
    await client.find();
    expect(existsSync(join(directory.path, "supervisors", "old"))).toBe(true);
    const { home, end } = written("so far\n");
    const sink = new Sink();
    const followed = client.resume("k", home, 0, sink);
    // There is no record yet, and nothing is concluded from that.
    writeFileSync(join(home, EXIT_FILE), JSON.stringify({ ...RECORD, end }));
    expect(await followed?.ending).toMatchObject({ kind: "exited", record: { code: 3 } });
    expect(sink.text).toBe("so far\n");
    client.close();
  },
);

test("when such a supervisor has died without a record, its step has no true end", async () => {
  const child = await living();
  const client = supervisors();
  await client.find();
  const sink = new Sink();
  const followed = client.resume("k", written("so far\n").home, 0, sink);
  child.kill("SIGKILL");
  await once(child, "exit");
  expect(await followed?.ending).toMatchObject({ kind: "lost" });
  expect(sink.text).toBe("so far\n");
});

test("a process that got the number of a dead supervisor is not taken for it", async () => {
  const home = join(directory.path, "supervisors", "dead");
  mkdirSync(home, { recursive: true });
  writeFileSync(
    join(home, "about.json"),
    JSON.stringify({ socketPath: join(home, "socket"), pid: process.pid }),
  );
  await supervisors().find();
  expect(existsSync(home)).toBe(false);
});
