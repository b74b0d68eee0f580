/**
 * Steps that try to get out of their box: the real bubblewrap, supervisor and executor, the attacker's own commands.
 *
 * Each attempt prints what it got; a control shows that the same command works without a box, so that none of these
 * can pass because the command was wrong.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { leaseKey, offerOf, type TestDirectory, testDirectory } from "../../agent/agent.fixture.ts";
import type { ExecutionResult } from "../../agent/executors/executor.ts";
import { ProcessExecutor } from "../../agent/executors/process-executor.ts";
import { NO_SANDBOX, realSandbox, Written } from "../../agent/sandbox/sandbox.fixture.ts";
import { TestSupervisors } from "../../agent/supervisor/supervisor.fixture.ts";
import { systemClock } from "../../shared/system.ts";
import { stepSpec } from "../support/specs.ts";

const SECRET = "the-patients-of-another-step";
let directory: TestDirectory;
let supervisors: TestSupervisors;
let stateDir: string;
let datasets: Record<string, string>;

beforeEach(() => {
  directory = testDirectory();
  chmodSync(directory.path, 0o755);
  stateDir = join(directory.path, "state");
  mkdirSync(join(stateDir, "identity"), { recursive: true });
  writeFileSync(join(stateDir, "identity", "key.pem"), SECRET, { mode: 0o644 });
  const data = join(directory.path, "data");
  mkdirSync(join(data, "written"), { recursive: true });
  chmodSync(join(data, "written"), 0o777);
  writeFileSync(join(data, "mine.csv"), "my-rows\n");
  writeFileSync(join(data, "other.csv"), SECRET);
  datasets = {
    mine: join(data, "mine.csv"),
    other: join(data, "other.csv"),
    written: join(data, "written"),
    all: data,
  };
  supervisors = new TestSupervisors(stateDir);
});
afterEach(async () => {
  await supervisors.stop();
  directory[Symbol.dispose]();
});

interface Tried {
  said: string;
  result: ExecutionResult;
}

async function attempt(script: string, change: object = {}, { boxed = true, config = {} } = {}) {
  const executor = new ProcessExecutor({
    clock: systemClock,
    stateDir,
    datasets,
    stepEnv: { PATH: process.env.PATH ?? "" },
    killGraceMs: 300,
    supervisors,
    sandbox: boxed ? await realSandbox({ stateDir, datasets, config }) : NO_SANDBOX,
  });
  const step = stepSpec("fit", {
    executor: { kind: "process", argv: ["sh", "-c", script] },
    reads: ["mine"],
    ...change,
  });
  const written = new Written();
  // Public, so that the control without a box is not refused.
  const classes = Object.keys(datasets).map((name) => ({ name, classification: "public" as const }));
  const epoch = ++epochs;
  const execution = executor.start(offerOf({ step, lease: leaseKey({ epoch }), datasets: classes }), written);
  return { execution, written };
}
let epochs = 0;

async function tried(script: string, change: object = {}, options = {}): Promise<Tried> {
  const { execution, written } = await attempt(script, change, options);
  const result = await execution.done;
  return { said: written.text, result };
}

describe("a boxed step can", () => {
  test("read its dataset, write its outputs and artifacts, and is told its environment", async () => {
    const { said, result } = await tried(
      'cat "$INSITU_DATASET_MINE"; echo "$GREETING"; echo 1 >"$INSITU_OUTPUT_DIR/n"; echo kept >a.txt; echo t >"$TMPDIR/t"',
      {
        env: { GREETING: "it's $HOME\n`id`" },
        outputs: { n: { type: "json", maxBytes: 10 } },
        artifacts: { a: { path: "a.txt", maxBytes: 10 } },
      },
    );
    expect(said).toBe("my-rows\nit's $HOME\n`id`\n");
    expect(result).toMatchObject({
      status: "succeeded",
      outputs: { n: { text: "1\n" } },
      artifacts: [{ bytes: 5 }],
    });
  });

  test("write where it declared to, and nowhere else", async () => {
    const { said } = await tried(
      'echo x >"$INSITU_DATASET_WRITTEN/x" && echo wrote; for p in "$INSITU_DATASET_MINE" "$INSITU_INPUT_DIR/x" /x /usr/x /etc/x /run/x; do (echo x >>"$p") 2>/dev/null && echo "wrote $p"; done; true',
      { writes: ["written"] },
    );
    expect(said).toBe("wrote\n");
    expect(readFileSync(join(datasets.written!, "x"), "utf8")).toBe("x\n");
  });

  test("report its true exit code, and that its program is not there", async () => {
    expect((await tried("exit 7")).result).toMatchObject({ status: "failed", exitCode: 7 });
    const { result } = await tried("", { executor: { kind: "process", argv: ["no-such-command"] } });
    expect(result.error?.message).toMatch(/no command no-such-command/);
    expect((await tried("exit 127")).result.error?.code).toBe("exit");
  });
});

describe("a boxed step cannot", () => {
  test.each([
    ["another dataset", () => `cat ${datasets.other}`],
    ["the agent's key", () => `cat ${stateDir}/identity/key.pem`],
    ["another dataset by a link of its own", () => `ln -s ${datasets.other} l && cat l`],
    ["another dataset by a hard link", () => `ln ${datasets.other} l && cat l`],
    ["the agent's key by a path through /proc", () => `cat /proc/*/root${stateDir}/identity/key.pem`],
  ])("read %s", async (_name, script) => {
    const control = await tried(script(), {}, { boxed: false });
    if (!script().includes("/proc")) expect(control.said).toContain(SECRET);
    const { said, result } = await tried(script());
    expect(said).not.toContain(SECRET);
    expect(result.status).toBe("failed");
  });

  test("read a dataset, or the agent's state, that lies below one that it reads", async () => {
    const script = 'cat "$INSITU_DATASET_ALL/other.csv"';
    const all = { reads: ["all"] };
    expect((await tried(script, all, { boxed: false })).said).toContain(SECRET);
    expect((await tried(script, all)).said).not.toContain(SECRET);
    datasets.all = directory.path;
    expect((await tried(`cat ${stateDir}/identity/key.pem`, all)).said).not.toContain(SECRET);
  });

  test("read a dataset through a directory that the host gives every step by a link", async () => {
    symlinkSync(join(directory.path, "data"), join(directory.path, "link"));
    const config = { paths: [join(directory.path, "link")] };
    const { said } = await tried(`cat ${directory.path}/link/other.csv; true`, { reads: [] }, { config });
    expect(said).not.toContain(SECRET);
  });

  test("see the host's processes, or the environment of the agent", async () => {
    process.env.SECRET_OF_THE_AGENT = SECRET;
    const { said } = await tried("ls -d /proc/[0-9]* | wc -l; cat /proc/*/environ | tr '\\0' '\\n'");
    delete process.env.SECRET_OF_THE_AGENT;
    expect(Number(said.split("\n")[0])).toBeLessThan(8);
    expect(said).not.toContain(SECRET);
    // Nor does process 1 carry what the step was told.
    expect((await tried("tr '\\0' '\\n' </proc/1/environ | grep -c INSITU")).said).toMatch(/^0$/m);
  });

  test("signal a process of the host", async () => {
    const victim = spawn("sleep", ["60"]);
    await once(victim, "spawn");
    try {
      const { result } = await tried(`kill -9 ${victim.pid}`);
      expect(result.status).toBe("failed");
      expect(victim.exitCode ?? victim.signalCode).toBeNull();
    } finally {
      victim.kill("SIGKILL");
    }
  });

  test("reach the host's loopback, a metadata address or a name server", async () => {
    const server = createServer((socket) => socket.end(SECRET)).listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as { port: number };
    const ask = (host: string, to: number) =>
      `node -e 'const s=require("net").connect(${to},"${host}");s.on("data",d=>console.log(String(d)));s.on("error",e=>console.log(e.code))'`;
    try {
      expect((await tried(ask("127.0.0.1", port), {}, { boxed: false })).said).toContain(SECRET);
      expect((await tried(ask("127.0.0.1", port))).said).toMatch(/ECONNREFUSED/);
      expect((await tried(ask("169.254.169.254", 80))).said).toMatch(/ENETUNREACH|EHOSTUNREACH/);
      const dns = `node -e 'require("dns").lookup("example.org",e=>console.log(e?.code))'`;
      expect((await tried(dns)).said).toMatch(/EAI_AGAIN|ENOTFOUND/);
    } finally {
      server.close();
    }
  });

  test("use an abstract socket of the host", async () => {
    const name = `insitu-${process.pid}-${++epochs}`;
    const python = (text: string) => `python3 -c '${text}'`;
    const listen = `import socket,time;s=socket.socket(socket.AF_UNIX);s.bind("\\0${name}");s.listen(9);print("up",flush=True);time.sleep(60)`;
    const dial = `import socket;s=socket.socket(socket.AF_UNIX);s.connect("\\0${name}");print("connected")`;
    const server = spawn("python3", ["-c", listen]);
    await once(server.stdout, "data");
    try {
      expect((await tried(python(dial), {}, { boxed: false })).said).toContain("connected");
      expect((await tried(python(dial))).said).toMatch(/ConnectionRefusedError/);
    } finally {
      server.kill("SIGKILL");
    }
  });

  test.each([
    ["a VSOCK", 40],
    ["a netlink", 16],
    ["a packet", 17],
    ["an ALG", 38],
  ])("open %s socket", async (_name, family) => {
    const { said } = await tried(
      `python3 -c 'import socket; socket.socket(${family}, 3 if ${family} == 17 else 1 if ${family} == 40 else 3)'`,
    );
    expect(said).toMatch(/Errno 97\b/);
  });

  test.each([
    ["a user namespace", "unshare -U true"],
    ["a mount", "mount -t tmpfs none /tmp"],
    ["another root", "chroot / true"],
    [
      "the kernel's keys",
      "python3 -c 'import ctypes,sys; sys.exit(ctypes.CDLL(None).syscall(250,0,-3,0) < 0)'",
    ],
    ["io_uring", "python3 -c 'import ctypes,sys; sys.exit(ctypes.CDLL(None).syscall(425,1,0) < 0)'"],
  ])("make or use %s", async (_name, script) => {
    expect((await tried(script)).result.status).toBe("failed");
  });

  test("gain a privilege", async () => {
    const { said } = await tried(
      "grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp):' /proc/self/status; id -u; cat /etc/shadow",
    );
    expect(said).toMatch(/CapPrm:\s0+\nCapEff:\s0+\nCapBnd:\s0+\nCapAmb:\s0+\nNoNewPrivs:\s1\nSeccomp:\s2/);
    expect(said).not.toMatch(/^0$/m);
    expect(said).not.toMatch(/root:/);
  });

  test("have a library of its own loaded while it still has privileges", async () => {
    const { said } = await tried("echo ran", { env: { LD_PRELOAD: "/nonexistent.so" } });
    // The loader's complaint comes from the step's own programs, whose shell is told last.
    expect(said).toMatch(/ran/);
    expect((await tried("id -u", { env: { LD_PRELOAD: "/nonexistent.so" } })).said).not.toMatch(/^0$/m);
  });

  test("live on after its end, its cancellation or its timeout", async () => {
    const mark = `insitu-survivor-${process.pid}-${++epochs}`;
    // Leaves its session, its parents, its pipes and its environment.
    const hide = `setsid env -i sh -c 'exec >/dev/null 2>&1; (exec -a ${mark} sleep 300) & sleep 300' & sleep 0.3`;
    const bash = (text: string) => ({
      executor: { kind: "process", argv: ["bash", "-c", text.replaceAll("sh -c", "/bin/bash -c")] },
    });
    expect((await tried("", bash(hide))).result.status).toBe("succeeded");
    expect(await survivors(mark)).toEqual([]);
    const { execution } = await attempt("", bash(`trap "" TERM; ${hide}; sleep 300`));
    while (running(mark).length === 0) await systemClock.sleep(10);
    execution.stop("cancelled", "test");
    expect((await execution.done).status).toBe("cancelled");
    expect(await survivors(mark)).toEqual([]);
  });

  test("bring a file out as an artifact or an output by a link", async () => {
    const artifact = await tried(`ln -s ${datasets.other} a.txt`, {
      artifacts: { a: { path: "a.txt", maxBytes: 1000 } },
    });
    expect(artifact.result).toMatchObject({ status: "failed", error: { code: "artifact.invalid" } });
    const output = await tried(`ln -s ${datasets.other} "$INSITU_OUTPUT_DIR/n"`, {
      outputs: { n: { type: "text", maxBytes: 1000 } },
    });
    expect(output.result).toMatchObject({ status: "failed", error: { code: "output.missing" } });
  });

  test("forge the record of its own end", async () => {
    const { said } = await tried("ls -a ..; echo '{}' > ../supervised/exit.json");
    expect(said).not.toMatch(/^supervised$/m);
  });

  test("write a file that is larger than its limit, or open more files", async () => {
    const config = { limits: { fileSizeBytes: 1024 * 1024, openFiles: 64 } };
    const { said } = await tried(
      "head -c 3000000 /dev/zero >f; wc -c <f; ulimit -n; ulimit -n 128 || echo no",
      {},
      { config },
    );
    expect(said).toMatch(/1048576\n64\n/);
    expect(said).toMatch(/^no$/m);
  });
});

test("an agent that must box and cannot starts no step", async () => {
  const marker = join(directory.path, "ran");
  const { result } = await tried(`touch ${marker}`, { reads: ["mine", "no-such"] });
  expect(result).toMatchObject({ status: "refused" });
  datasets.mine = "/no/such/file";
  expect((await tried(`touch ${marker}`)).result).toMatchObject({
    status: "refused",
    error: { code: "sandbox" },
  });
  expect(existsSync(marker)).toBe(false);
});

function running(mark: string): number[] {
  return readdirSync("/proc")
    .filter((entry) => /^\d+$/.test(entry))
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, "latin1").split("\0")[0] === mark;
      } catch {
        return false; // gone meanwhile
      }
    })
    .map(Number);
}

async function survivors(mark: string): Promise<number[]> {
  for (let i = 0; i < 100 && running(mark).length > 0; i++) await systemClock.sleep(20);
  return running(mark);
}
