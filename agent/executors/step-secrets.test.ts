/** Steps that are given secrets, with and without a box, under the real supervisor. */
import { createHash } from "node:crypto";
import { chmodSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { StepSpec } from "../../shared/model/spec.ts";
import { systemClock } from "../../shared/system.ts";
import type { LogStreamName } from "../../shared/wire/log-entries.ts";
import { stepSpec } from "../../test/support/specs.ts";
import { leaseKey, offerOf, type TestDirectory, testDirectory, Until } from "../agent.fixture.ts";
import { NO_SANDBOX, realSandbox } from "../sandbox/sandbox.fixture.ts";
import { Secrets } from "../secrets/secrets.ts";
import { TestSupervisors } from "../supervisor/supervisor.fixture.ts";
import type { AttemptIo } from "./executor.ts";
import { ProcessExecutor } from "./process-executor.ts";

const PASSWORD = "pa'ss \"w%rd\\ ünïque/+";
const KEY = Buffer.from([...Array(256).keys()]);
const MEMORY = "/dev/shm";

let directory: TestDirectory;
let supervisors: TestSupervisors;
let environment: Record<string, string>;
beforeEach(() => {
  directory = testDirectory();
  mkdirSync(join(directory.path, "state"));
  supervisors = new TestSupervisors(join(directory.path, "state"));
  environment = { PASSWORD: PASSWORD };
  writeFileSync(join(directory.path, "key"), KEY, { mode: 0o600 });
});
afterEach(async () => {
  await supervisors.stop();
  directory[Symbol.dispose]();
});

class Written implements AttemptIo {
  readonly said = { stdout: "", stderr: "" };
  readonly #until = new Until();
  log(stream: LogStreamName, data: Buffer): boolean {
    this.said[stream as "stdout" | "stderr"] += data.toString("latin1");
    this.#until.changed();
    return true;
  }
  says(text: string): Promise<void> {
    return this.#until.holds(() => this.said.stdout.includes(text));
  }
  onDrain(): void {}
  readonly storedOffset = 0;
  dropped(): void {}
}

let epochs = 0;
interface Given {
  boxed?: boolean;
  memoryDirectories?: string[];
  argv?: string[];
  config?: object;
  hidden?: string[];
}

async function begin(script: string, change: Partial<StepSpec>, given: Given = {}) {
  const {
    boxed = false,
    memoryDirectories = [MEMORY],
    argv = ["sh", "-ec", script],
    config = {},
    hidden = [],
  } = given;
  const stateDir = join(directory.path, "state");
  const executor = new ProcessExecutor({
    clock: systemClock,
    stateDir,
    datasets: {},
    stepEnv: { PATH: process.env.PATH ?? "" },
    killGraceMs: 300,
    supervisors,
    sandbox: boxed ? await realSandbox({ stateDir, config, hidden }) : NO_SANDBOX,
    secrets: new Secrets({
      clock: systemClock,
      sources: {
        password: { from: "env", variable: "PASSWORD" },
        key: { from: "file", path: join(directory.path, "key") },
      },
      environment,
      memoryDirectories,
    }),
  });
  const step = stepSpec("fit", { executor: { kind: "process", argv }, ...change });
  const written = new Written();
  const execution = executor.start(offerOf({ step, lease: leaseKey({ epoch: ++epochs }) }), written);
  return { written, execution };
}

async function ended(script: string, change: Partial<StepSpec>, given: Given = {}) {
  const { written, execution } = await begin(script, change, given);
  const result = await execution.done;
  await execution.forget();
  return { result, said: written.said };
}

function mine(): string[] {
  return readdirSync(MEMORY).filter((name) => name.startsWith("insitu-"));
}

const asEnv = { secrets: { DB_PASSWORD: { name: "password", as: "env" } } } as const;
const asFile = { secrets: { DB_KEY: { name: "key", as: "file" } } } as const;

describe.each([
  ["in a box", true],
  ["without a box", false],
])("%s", (_, boxed) => {
  test("a secret is in its variable, byte for byte, and in no line of the log", async () => {
    const { result, said } = await ended(
      'printf %s "$DB_PASSWORD" | sha256sum; echo "it is $DB_PASSWORD."; printf %s "$DB_PASSWORD" | base64 >&2',
      asEnv,
      { boxed },
    );
    expect(result).toMatchObject({ status: "succeeded", error: null });
    expect(said.stdout).toContain(createHash("sha256").update(PASSWORD).digest("hex"));
    expect(said.stdout).toContain("it is ***.\n");
    expect(said.stderr).toBe("***\n");
  });

  test("a secret is in a file that its user alone reads, whatever its bytes, and lies in memory", async () => {
    const { result, said } = await ended(
      'sha256sum <"$DB_KEY_FILE"; stat -c %a "$DB_KEY_FILE"; stat -f -c %T "$DB_KEY_FILE"; [ "$(stat -c %u "$DB_KEY_FILE")" = "$(id -u)" ]; printenv DB_KEY || echo no variable',
      asFile,
      { boxed },
    );
    const [digest, mode, type, none] = said.stdout.split("\n");
    expect(result.status).toBe("succeeded");
    expect(digest).toContain(createHash("sha256").update(KEY).digest("hex"));
    expect([mode, type, none]).toEqual([boxed ? "400" : "600", "tmpfs", "no variable"]);
  });

  test("outputs are masked before they are read", async () => {
    const { result } = await ended(
      'printf \'{"dsn":"db://u:%s@h","n":1}\' "$(printf %s "$DB_PASSWORD" | base64)" >"$INSITU_OUTPUT_DIR/dsn"; echo fine >"$INSITU_OUTPUT_DIR/plain"',
      {
        ...asEnv,
        outputs: { dsn: { type: "json", maxBytes: 1000 }, plain: { type: "text", maxBytes: 1000 } },
      },
      { boxed },
    );
    expect(result).toMatchObject({ status: "succeeded", outputs: { plain: { text: "fine\n" } } });
    expect(result.outputs.dsn?.text).toBe('{"dsn":"db://u:***@h","n":1}');
  });

  test("it is on no command line while the step runs, and its files are gone afterwards", async () => {
    const before = mine();
    const { written, execution } = await begin(
      "echo ready; exec sleep 600",
      { secrets: { ...asEnv.secrets, ...asFile.secrets } },
      { boxed },
    );
    await written.says("ready");
    expect(mine().length - before.length).toBe(boxed ? 0 : 1);
    const lines = readdirSync("/proc")
      .filter((name) => /^\d+$/.test(name))
      .map(commandLine);
    expect(lines.some((line) => line.includes("sleep"))).toBe(true);
    expect(lines.filter((line) => line.includes(PASSWORD))).toEqual([]);
    execution.stop("cancelled", "enough");
    expect(await execution.done).toMatchObject({ status: "cancelled" });
    expect(mine()).toEqual(before);
  });

  test("each attempt has the value of its moment", async () => {
    const script = 'printf %s "$DB_PASSWORD" | wc -c';
    const first = await ended(script, asEnv, { boxed });
    environment.PASSWORD = "another-one";
    const second = await ended(script, asEnv, { boxed });
    expect([first.said.stdout.trim(), second.said.stdout.trim()]).toEqual([
      String(Buffer.byteLength(PASSWORD)),
      "11",
    ]);
  });
});

function commandLine(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8");
  } catch {
    return ""; // gone meanwhile
  }
}

test("a boxed step does not see where its agent reads secrets from, and its own files are all that it gets", async () => {
  chmodSync(directory.path, 0o755);
  const { result, said } = await ended(
    `ls -A /run/secrets; stat -c %s ${join(directory.path, "key")}; ls -A /dev/shm`,
    asFile,
    { boxed: true, config: { paths: [directory.path] }, hidden: [join(directory.path, "key")] },
  );
  expect(result.status).toBe("succeeded");
  expect(said.stdout).toBe("DB_KEY\n0\n");
});

test("what a step says of a secret in two writes, or on two streams, is masked as it was said", async () => {
  environment.PASSWORD = "abcdef-canary";
  const { said } = await ended('printf abcdef-; printf "canary abcd"; printf abcdef- >&2; echo ef', asEnv);
  expect(said).toEqual({ stdout: "*** abcdef\n", stderr: "abcdef-" });
});

test("what an error quotes of an output is masked", async () => {
  environment.PASSWORD = "abcdef-canary";
  const outputs = { n: { type: "json", maxBytes: 100 } } as const;
  const { result } = await ended('printf %s "$DB_PASSWORD" >"$INSITU_OUTPUT_DIR/n"', { ...asEnv, outputs });
  expect(result).toMatchObject({ status: "failed", error: { code: "output.invalid" } });
  expect(result.error?.message).not.toContain("abc");
});

test.each([
  [
    "is not known",
    { X: { name: "unknown", as: "env" } },
    {},
    "refused",
    /secret unknown: not known at this agent/,
  ],
  [
    "is too short",
    { X: { name: "password", as: "env" } },
    { PASSWORD: "five5\n" },
    "refused",
    /shorter than 6 bytes/,
  ],
  ["is no text", { X: { name: "key", as: "env" } }, {}, "refused", /no environment variable can/],
] as const)(
  "a secret that %s ends the attempt before it begins",
  async (_, secrets, change, status, message) => {
    Object.assign(environment, change);
    const { result } = await ended("echo began", { secrets });
    expect(result).toMatchObject({
      status,
      error: { code: "secret.missing", message: expect.stringMatching(message) },
    });
    expect(result.error?.message).not.toContain("five5");
  },
);

test("without memory to lay it in, a secret is not given as a file; as a variable it is", async () => {
  const memoryDirectories = [join(directory.path, "nowhere"), "/proc"];
  const { result } = await ended("true", asFile, { memoryDirectories });
  expect(result).toMatchObject({
    status: "refused",
    error: { code: "secret.missing", message: expect.stringMatching(/tmpfs/) },
  });
  expect((await ended("true", asEnv, { memoryDirectories })).result.status).toBe("succeeded");
});
