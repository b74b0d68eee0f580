import { createHash } from "node:crypto";
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import type { LogStreamName } from "../../shared/wire/log-entries.ts";
import { stepSpec } from "../../test/support/specs.ts";
import { leaseKey, offerOf, type TestDirectory, testDirectory, Until } from "../agent.fixture.ts";
import { NO_SANDBOX } from "../sandbox/sandbox.fixture.ts";
import { TestSupervisors } from "../supervisor/supervisor.fixture.ts";
import type { AttemptIo } from "./executor.ts";
import { ProcessExecutor, type ProcessExecutorOptions } from "./process-executor.ts";

let directory: TestDirectory;
let supervisors: TestSupervisors;
beforeEach(() => {
  directory = testDirectory();
  supervisors = new TestSupervisors(directory.path);
});
afterEach(async () => {
  await supervisors.stop();
  directory[Symbol.dispose]();
});

/** Keeps what a step wrote. */
class Written implements AttemptIo {
  readonly chunks: { stream: LogStreamName; data: Buffer }[] = [];
  readonly #until = new Until();
  log(stream: LogStreamName, data: Buffer): boolean {
    this.chunks.push({ stream, data });
    this.#until.changed();
    return true;
  }
  onDrain(): void {}
  readonly storedOffset = 0;
  dropped(): void {}
  bytes(stream: LogStreamName = "stdout"): Buffer {
    return Buffer.concat(this.chunks.filter((chunk) => chunk.stream === stream).map(({ data }) => data));
  }
  text(stream: LogStreamName = "stdout"): string {
    return this.bytes(stream).toString("utf8");
  }
  async lines(count: number): Promise<string[]> {
    await this.#until.holds(() => this.text().split("\n").length > count);
    return this.text().split("\n").slice(0, count);
  }
}

function start(argv: string[], change: Parameters<typeof offerOf>[0] = {}, options = {}) {
  const executor = new ProcessExecutor({
    clock: systemClock,
    stateDir: directory.path,
    datasets: {},
    stepEnv: { PATH: process.env.PATH ?? "" },
    sandbox: NO_SANDBOX,
    killGraceMs: 300,
    supervisors,
    ...options,
  } satisfies ProcessExecutorOptions);
  const step = stepSpec("fit", { executor: { kind: "process", argv }, ...change.step });
  const offer = offerOf({ ...change, step });
  const written = new Written();
  return { written, executor, offer, execution: executor.start(offer, written) };
}
const sh = (text: string, change: Parameters<typeof offerOf>[0] = {}, options = {}) =>
  start(["sh", "-ec", text], change, options);
const withStep = (change: Partial<ReturnType<typeof stepSpec>>) => ({ step: change as never });

/** Also false for a zombie, which holds nothing. */
function isAlive(pid: number): boolean {
  try {
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
}
async function gone(pid: number): Promise<boolean> {
  for (let i = 0; i < 100 && isAlive(pid); i++) await systemClock.sleep(20);
  return !isAlive(pid);
}

describe("what a step sees", () => {
  test("its files, its inputs, its parameters, its datasets, and not the agent's own environment", async () => {
    process.env.SECRET_OF_THE_AGENT = "x";
    const { written, execution } = sh(
      "env; cat lib/a.txt; cat $INSITU_INPUT_DIR/count/total",
      {
        step: {
          env: { GREETING: "hello" },
          reads: ["penguins-dream"],
          needs: ["count"],
        } as never,
        params: { "learning-rate": 0.5 },
        files: { "lib/a.txt": "from a file\n" },
        inputs: {
          count: { total: { type: "json", digest: `sha256:${"0".repeat(64)}`, bytes: 2, text: "42" } },
        },
        lease: leaseKey({ attempt: 2, epoch: 3 }),
      },
      { datasets: { "penguins-dream": "/data/penguins.json", other: "/data/other" } },
    );
    expect(await execution.done).toMatchObject({ status: "succeeded", exitCode: 0, error: null });
    const lines = written.text().split("\n");
    for (const line of [
      "GREETING=hello",
      "INSITU_RUN_ID=run-1",
      "INSITU_STEP_ID=fit",
      "INSITU_ATTEMPT=2",
      "INSITU_EPOCH=3",
      "INSITU_ENVIRONMENT=dream",
      "INSITU_PIPELINE=penguins",
      "INSITU_PARAM_LEARNING_RATE=0.5",
      "INSITU_DATASET_PENGUINS_DREAM=/data/penguins.json",
      "TRACEPARENT=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
      "from a file",
      "42",
    ])
      expect(lines).toContain(line);
    expect(written.text()).not.toMatch(/SECRET_OF_THE_AGENT|INSITU_DATASET_OTHER/);
  });

  test("a working directory that is gone afterwards, whether it succeeded or failed", async () => {
    for (const end of ["exit 0", "exit 3"]) {
      const { written, execution } = sh(`pwd; touch left; ${end}`);
      await execution.done;
      await execution.forget();
      expect(written.text()).toContain(directory.path);
      expect(existsSync(written.text().trim())).toBe(false);
    }
    expect(readdirSync(join(directory.path, "work"))).toEqual([]);
  });

  test("an input that ends at once", async () => {
    const { execution } = start(["cat"]);
    expect((await execution.done).status).toBe("succeeded");
  });
});

describe("what a step writes", () => {
  test("arrives byte for byte, its two streams apart", async () => {
    const all = "for i in range(256): b.append(i)";
    const { written, execution } = start([
      "python3",
      "-c",
      `import sys\nb=bytearray()\n${all}\nsys.stdout.buffer.write(b*40)\nsys.stderr.buffer.write(b"\\xff\\x00err")`,
    ]);
    expect((await execution.done).status).toBe("succeeded");
    const once = Buffer.from(Array.from({ length: 256 }, (_, i) => i));
    expect(written.bytes("stdout").equals(Buffer.concat(Array(40).fill(once)))).toBe(true);
    expect(written.bytes("stderr").equals(Buffer.from([0xff, 0, ...Buffer.from("err")]))).toBe(true);
  });

  test("arrives whole when it is a megabyte without a line's end, written just before the exit", async () => {
    const { written, execution } = sh("head -c 1048576 /dev/zero | tr '\\0' x");
    expect((await execution.done).status).toBe("succeeded");
    expect(written.bytes().length).toBe(1_048_576);
    expect(written.bytes().every((byte) => byte === 120)).toBe(true);
  });

  test("waits while nobody can take it, and is whole in the end", async () => {
    let resume: (() => void) | undefined;
    let total = 0;
    let paused = 0;
    const executor = new ProcessExecutor({
      clock: systemClock,
      stateDir: directory.path,
      datasets: {},
      stepEnv: { PATH: process.env.PATH ?? "" },
      sandbox: NO_SANDBOX,
      killGraceMs: 300,
      supervisors,
    });
    const step = stepSpec("fit", {
      executor: { kind: "process", argv: ["head", "-c", "3000000", "/dev/zero"] },
    });
    const execution = executor.start(offerOf({ step }), {
      log(_, data) {
        total += data.length;
        return false;
      },
      onDrain(go) {
        paused += 1;
        resume = go;
        setImmediate(() => resume?.());
      },
      storedOffset: 0,
      dropped: () => undefined,
    });
    expect((await execution.done).status).toBe("succeeded");
    expect(total).toBe(3_000_000);
    expect(paused).toBeGreaterThan(10);
  });
});

describe("how a step ends", () => {
  test.each([
    ["exit 7", { status: "failed", exitCode: 7, signal: null, error: { code: "exit" } }],
    ["kill -USR1 $$", { status: "failed", exitCode: null, signal: "SIGUSR1", error: { code: "signal" } }],
  ])("%s is told as it was", async (text, expected) => {
    expect(await sh(text).execution.done).toMatchObject(expected);
  });

  test("a command that is not there fails with what to do about it", async () => {
    expect(await start(["no-such-command"]).execution.done).toMatchObject({
      status: "failed",
      error: { code: "exec", message: expect.stringMatching(/no command no-such-command .*PATH.*stepEnv/) },
    });
  });

  test("a file that may not be executed fails with that reason", async () => {
    const path = join(directory.path, "script");
    writeFileSync(path, "#!/bin/sh\n");
    chmodSync(path, 0o600);
    expect(await start([path]).execution.done).toMatchObject({
      status: "failed",
      error: { code: "exec", message: expect.stringMatching(/may not be executed/) },
    });
  });

  test("a dataset that is not mounted here is refused before anything starts", async () => {
    const { execution } = sh("touch /nowhere", withStep({ reads: ["patients"] }));
    expect(await execution.done).toMatchObject({
      status: "refused",
      error: { code: "dataset.not-mounted", message: expect.stringMatching(/patients.*datasets/) },
    });
  });

  test("a file of the offer that leaves the working directory is refused", async () => {
    const { execution } = sh("true", { files: { "../../escape": "x" } });
    expect(await execution.done).toMatchObject({ status: "refused", error: { code: "offer.refused" } });
    expect(existsSync(join(directory.path, "work", "escape"))).toBe(false);
  });

  test("its timeout ends it", async () => {
    expect(await sh("sleep 60", withStep({ timeoutMs: 100 })).execution.done).toMatchObject({
      status: "timed-out",
      signal: "SIGTERM",
      error: { code: "timeout", message: expect.stringMatching(/100 ms/) },
    });
  });

  test("stopped before its process exists, it never starts", async () => {
    const { execution } = sh(`touch ${directory.path}/started`);
    execution.stop("cancelled", "not needed");
    expect(await execution.done).toMatchObject({ status: "cancelled", error: { message: "not needed" } });
    expect(existsSync(join(directory.path, "started"))).toBe(false);
  });
});

// /proc shows the marker; elsewhere only the group is reached.
describe.runIf(process.platform === "linux")("its whole tree", () => {
  test("a cancelled step takes its children with it, in sessions of their own and deaf to SIGTERM too", async () => {
    const { written, execution } = sh(`
      trap '' TERM
      setsid sh -c 'trap "" TERM; echo $$; while :; do sleep 0.1; done' &
      (setsid sh -c 'echo $$; exec sleep 600' &) &
      echo $$
      while :; do sleep 0.1; done`);
    const pids = (await written.lines(3)).map(Number);
    expect(pids.every(isAlive)).toBe(true);
    execution.stop("cancelled", "by ada");
    expect(await execution.done).toMatchObject({ status: "cancelled", signal: "SIGKILL" });
    expect(pids.filter(isAlive)).toEqual([]);
  });

  test("a step that ends on SIGTERM within the grace is not killed", async () => {
    const { written, execution } = sh(
      "trap 'echo bye; exit 4' TERM; echo ready; while :; do sleep 0.05; done",
      {},
      { killGraceMs: 10_000 },
    );
    await written.lines(1);
    execution.stop("cancelled", "by ada");
    expect(await execution.done).toMatchObject({ status: "cancelled", exitCode: 4, signal: null });
    expect(written.text()).toBe("ready\nbye\n");
  });

  test("a child that escaped and holds the pipes does not hold the outcome", async () => {
    const { written, execution } = sh("setsid sh -c 'echo $$; exec sleep 600' & sleep 0.2; echo done");
    const result = await execution.done;
    expect(result.status).toBe("succeeded");
    expect(written.text()).toContain("done");
    expect(await gone(Number(written.text().split("\n")[0]))).toBe(true);
  });

  test("a child that escaped and let go of the pipes ends after a step that succeeded", async () => {
    const { written, execution } = sh(
      "setsid sh -c 'echo $$ > pid; exec sleep 600' > /dev/null 2>&1 & while [ ! -s pid ]; do sleep 0.01; done; cat pid",
    );
    expect((await execution.done).status).toBe("succeeded");
    const pid = Number(written.text());
    expect(pid).toBeGreaterThan(1);
    expect(await gone(pid)).toBe(true);
  });

  test("what an earlier process of the agent left running is ended by its marker, and nothing else", async () => {
    const other = sh("echo $$; exec sleep 600", { lease: leaseKey({ runId: "other" }) });
    const left = sh("echo $$; exec sleep 600");
    const [otherPid] = (await other.written.lines(1)).map(Number);
    const [leftPid] = (await left.written.lines(1)).map(Number);
    const later = new ProcessExecutor({
      clock: systemClock,
      stateDir: directory.path,
      datasets: {},
      stepEnv: {},
      sandbox: NO_SANDBOX,
      killGraceMs: 0,
      supervisors,
    });
    await later.cleanUp(left.offer);
    expect(isAlive(leftPid!)).toBe(false);
    expect(isAlive(otherPid!)).toBe(true);
    other.execution.stop("cancelled", "end of test");
    await Promise.all([other.execution.done, left.execution.done]);
  });
});

describe("outputs", () => {
  const json = { type: "json", maxBytes: 100 } as const;
  const text = { type: "text", maxBytes: 100 } as const;

  test("declared ones are read with their digest, others stay behind", async () => {
    const { execution } = sh(
      `printf '{"n":1}' > $INSITU_OUTPUT_DIR/stats; printf secret > $INSITU_OUTPUT_DIR/rows`,
      withStep({ outputs: { stats: json } }),
    );
    expect(await execution.done).toMatchObject({
      status: "succeeded",
      outputs: {
        stats: {
          type: "json",
          text: '{"n":1}',
          digest: `sha256:${createHash("sha256").update('{"n":1}').digest("hex")}`,
        },
      },
    });
    expect(Object.keys((await execution.done).outputs)).toEqual(["stats"]);
  });

  test.each([
    ["true", json, "output.missing"],
    [`head -c 101 /dev/zero > $INSITU_OUTPUT_DIR/out`, text, "output.too-large"],
    [`printf nope > $INSITU_OUTPUT_DIR/out`, json, "output.invalid"],
    [`printf '\\377' > $INSITU_OUTPUT_DIR/out`, text, "output.invalid"],
    [`mkdir $INSITU_OUTPUT_DIR/out`, text, "output.invalid"],
    [`ln -s /etc/hostname $INSITU_OUTPUT_DIR/out`, text, "output.missing"],
    [`mkfifo $INSITU_OUTPUT_DIR/out`, text, "output.invalid"],
  ])("%s fails the attempt", async (command, spec, code) => {
    const { execution } = sh(command, withStep({ outputs: { out: spec } }));
    expect(await execution.done).toMatchObject({
      status: "failed",
      exitCode: 0,
      error: { code },
      outputs: {},
    });
  });
});

describe("artifacts", () => {
  const artifact = (path: string, maxBytes = 100) => withStep({ artifacts: { report: { path, maxBytes } } });

  test("are kept under their digest, once for equal content", async () => {
    const digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    for (let i = 0; i < 2; i++) {
      const { execution } = sh("mkdir out; printf abc > out/report", artifact("out/report"));
      expect(await execution.done).toMatchObject({
        status: "succeeded",
        artifacts: [{ name: "report", digest: `sha256:${digest}`, bytes: 3 }],
      });
    }
    const store = join(directory.path, "artifacts", "sha256");
    expect(readdirSync(store)).toEqual([digest]);
    expect(readFileSync(join(store, digest), "utf8")).toBe("abc");
  });

  test.each([
    ["true", "report", "artifact.missing"],
    ["ln -s /etc/hostname report", "report", "artifact.invalid"],
    ["ln -s / root", "root/etc/hostname", "artifact.invalid"],
    ["true", "../../../../outside", "artifact.invalid"],
    ["mkdir report", "report", "artifact.invalid"],
    ["head -c 101 /dev/zero > report", "report", "artifact.too-large"],
  ])("%s with the path %s fails the attempt", async (command, path, code) => {
    mkdirSync(join(directory.path, "work"), { recursive: true });
    writeFileSync(join(directory.path, "outside"), "of the agent");
    const { execution } = sh(command, artifact(path));
    expect(await execution.done).toMatchObject({ status: "failed", error: { code }, artifacts: [] });
    expect(existsSync(join(directory.path, "artifacts"))).toBe(false);
  });
});
