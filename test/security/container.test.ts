/** Steps that run images made for the purpose, benign and hostile, in the real box, and try to get out of it. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { leaseKey, offerOf, type TestDirectory, testDirectory } from "../../agent/agent.fixture.ts";
import { ProcessExecutor } from "../../agent/executors/process-executor.ts";
import { ImageStore } from "../../agent/images/image-store.ts";
import { NO_SANDBOX, realSandbox, Written } from "../../agent/sandbox/sandbox.fixture.ts";
import { TestSupervisors } from "../../agent/supervisor/supervisor.fixture.ts";
import { systemClock } from "../../shared/system.ts";
import { type LayoutRequest, makeLayout, NO_IMAGES } from "../support/oci-layout.ts";
import { stepSpec } from "../support/specs.ts";

const SECRET = "the-patients-of-another-step";
const HOST_UID = process.getuid!();
let directory: TestDirectory;
let supervisors: TestSupervisors;
let stateDir: string;
let datasets: Record<string, string>;
let images: ImageStore;
let count = 0;

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
  };
  supervisors = new TestSupervisors(stateDir);
  images = new ImageStore(stateDir);
});
afterEach(async () => {
  await supervisors.stop();
  directory[Symbol.dispose]();
});

/** A dataset where an image may have files as well: /tmp of a box is never the image's. */
function outsideOfTmp(): Disposable & { path: string } {
  const path = mkdtempSync("/var/tmp/insitu-container-");
  chmodSync(path, 0o755);
  writeFileSync(join(path, "mine.csv"), "my-rows\n");
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true }) };
}

async function imported(request: LayoutRequest = {}): Promise<string> {
  const made = makeLayout(join(directory.path, `layout-${++count}`), request);
  const { image } = await images.import(made.path, { nowMs: 0 });
  return `registry.example/test@${image.digest}`;
}

async function attempt(executor: object, change: object = {}, { boxed = true, config = {} } = {}) {
  const sandbox = boxed ? await realSandbox({ stateDir, datasets, config }) : NO_SANDBOX;
  const runs = new ProcessExecutor({
    clock: systemClock,
    stateDir,
    datasets,
    stepEnv: { PATH: "/of/the/host", SITE: "hq" },
    killGraceMs: 300,
    supervisors,
    sandbox,
    images,
  });
  const step = stepSpec("fit", {
    executor: { kind: "container", ...executor } as never,
    reads: ["mine"],
    ...change,
  });
  const written = new Written();
  const classes = Object.keys(datasets).map((name) => ({ name, classification: "public" as const }));
  const execution = runs.start(
    offerOf({ step, lease: leaseKey({ epoch: ++count }), datasets: classes }),
    written,
  );
  return { execution, written };
}

async function tried(executor: object, change: object = {}, options = {}) {
  const { execution, written } = await attempt(executor, change, options);
  const result = await execution.done;
  return { said: written.text, result };
}

/** A script in an image that has busybox and nothing else. */
async function script(text: string, change: object = {}, options = {}) {
  const image = await imported();
  return await tried({ image, command: ["sh", "-ec", text] }, change, options);
}

describe.skipIf(NO_IMAGES !== undefined)("a step of an image can", () => {
  test("read its dataset, write its outputs, artifacts and datasets, and is told its environment", async () => {
    const { said, result } = await script(
      'cat "$INSITU_DATASET_MINE"; echo "$GREETING"; echo 1 >"$INSITU_OUTPUT_DIR/n"; echo kept >a.txt; echo t >"$TMPDIR/t"; echo x >"$INSITU_DATASET_WRITTEN/x"; echo m >/tmp/m',
      {
        env: { GREETING: "it's $HOME\n`id`" },
        writes: ["written"],
        outputs: { n: { type: "json", maxBytes: 10 } },
        artifacts: { a: { path: "a.txt", maxBytes: 10 } },
      },
    );
    expect(said).toBe("my-rows\nit's $HOME\n`id`\n");
    expect(result).toMatchObject({
      status: "succeeded",
      outputs: { n: { text: "1\n" } },
      artifacts: [{ bytes: 5 }],
      sandbox: { kind: "bubblewrap", network: "none", image: expect.stringMatching(/^sha256:[0-9a-f]{64}$/) },
    });
    expect(readFileSync(join(datasets.written!, "x"), "utf8")).toBe("x\n");
  });

  test("run what the image says, with its variables and those of the site", async () => {
    const config = {
      Entrypoint: ["sh", "-c", 'echo "$GREETING $SITE $PATH"; echo "$0 $*"'],
      Cmd: ["of", "the image"],
      Env: ["GREETING=hello world", "PATH=/bin"],
    };
    const image = await imported({ config });
    expect((await tried({ image })).said).toBe("hello world hq /bin\nof the image\n");
    expect((await tried({ image, args: ["of", "the step"] })).said).toBe(
      "hello world hq /bin\nof the step\n",
    );
    expect((await tried({ image, command: ["echo", "else"] })).said).toBe("else\n");
    expect((await tried({ image }, { env: { GREETING: "step" } })).said).toMatch(/^step hq/);
  });

  test("see the layers of its image, one over the other, and what they take away", async () => {
    const image = await imported({
      files: { "srv/a": "old", "srv/b": "gone" },
      layers: [{ "srv/a": "new", "srv/.wh.b": "" }],
    });
    const { said } = await tried({ image, command: ["sh", "-c", "cat /srv/a; ls /srv"] });
    expect(said).toBe("newa\n");
  });

  test("have its datasets and directories where the image has directories of its own", async () => {
    using outside = outsideOfTmp();
    datasets.mine = join(outside.path, "mine.csv");
    const inImage = join(outside.path, "of-the-image").slice(1);
    const image = await imported({ files: { [inImage]: "kept", "etc/issue": "of the image\n" } });
    const { said, result } = await tried({
      image,
      command: ["sh", "-ec", `cat "$INSITU_DATASET_MINE" /etc/issue /${inImage}; touch here`],
    });
    expect(said).toBe("my-rows\nof the image\nkept");
    expect(result.status).toBe("succeeded");
  });

  test("be let out to its target and to no other", async () => {
    const server = createServer((socket) => socket.end("from-the-target")).listen(0, "127.0.0.1");
    const other = createServer((socket) => socket.end(SECRET)).listen(0, "127.0.0.1");
    await Promise.all([once(server, "listening"), once(other, "listening")]);
    const [port, closed] = [server, other].map((each) => (each.address() as { port: number }).port);
    const target = `127.0.0.1:${port}`;
    const text = `a=$INSITU_CONNECT_127_0_0_1_${port}; nc \${a%:*} \${a#*:} </dev/null; nc -w 2 127.0.0.1 ${closed} </dev/null || true`;
    try {
      const wanted = { network: { allow: [target] } };
      const { said, result } = await script(text, wanted, { config: { egress: [target] } });
      expect(said).toContain("from-the-target");
      expect(said).not.toContain(SECRET);
      expect(result).toMatchObject({
        sandbox: { network: "allow-list" },
        network: [{ target, connections: 1 }],
      });
      expect((await script(text, wanted)).result).toMatchObject({ status: "refused" });
    } finally {
      server.close();
      other.close();
    }
  });

  test("report its true exit code, its limits, and that its program is not there", async () => {
    expect((await script("exit 7")).result).toMatchObject({ status: "failed", exitCode: 7 });
    const image = await imported();
    const { result } = await tried({ image, command: ["no-such-command"] });
    expect(result.error).toMatchObject({
      code: "exec",
      message: expect.stringMatching(/is not in the image/),
    });
    const config = { limits: { fileSizeBytes: 1024 * 1024, openFiles: 64 } };
    const { said } = await script(
      "head -c 3000000 /dev/zero >f || true; stat -c %s f; ulimit -n",
      {},
      { config },
    );
    expect(said).toMatch(/1048576\n64\n/);
  });
});

describe.skipIf(NO_IMAGES !== undefined)("a step of an image cannot", () => {
  test.each([
    ["another dataset", () => `cat ${datasets.other}`],
    ["the agent's key", () => `cat ${stateDir}/identity/key.pem`],
    ["the agent's key by a path through /proc", () => `cat /proc/*/root${stateDir}/identity/key.pem`],
    ["the host's programs", () => "cat /usr/bin/env"],
    ["the host's users", () => `grep -v -e '^root:x:0:0:' -e '^step:' /etc/passwd`],
    ["other images", () => `ls ${stateDir}/images`],
  ])("read %s", async (_name, text) => {
    const { said, result } = await script(text());
    expect(said).not.toContain(SECRET);
    expect(result.status).toBe("failed");
  });

  test("lead to files of the host by links of its image", async () => {
    const image = await imported({
      links: { leak: `${stateDir}/identity/key.pem`, up: "../../../../../../../../../../../" },
    });
    const text = `cat /leak /up${stateDir}/identity/key.pem; test ! -e /up/usr/bin/env && echo contained`;
    const { said } = await tried({ image, command: ["sh", "-c", text] });
    expect(said).not.toContain(SECRET);
    expect(said).toContain("contained");
  });

  test("have a link of its image where its dataset is to be", async () => {
    using outside = outsideOfTmp();
    datasets.mine = join(outside.path, "mine.csv");
    const image = await imported({ links: { [outside.path.slice(1)]: "/srv" } });
    const { said, result } = await tried({ image, command: ["echo", "ran"] });
    expect(said).toBe("");
    expect(result).toMatchObject({
      status: "refused",
      error: { message: expect.stringMatching(/no directory/) },
    });
  });

  test("write anywhere but where it declared to", async () => {
    const places = ["/x", "/bin/x", "/etc/x", "/etc/passwd", "/run/x", "/run/insitu/sh", "/run/insitu/lib/x"];
    const { said } = await script(
      `for p in ${places.join(" ")} "$INSITU_DATASET_MINE" "$INSITU_INPUT_DIR/x"; do (echo x >>"$p") 2>/dev/null && echo "wrote $p"; done; true`,
    );
    expect(said).toBe("");
    // Nor in what the next step of the image is given.
    const [hex] = readdirSync(join(stateDir, "images"));
    expect(existsSync(join(stateDir, "images", hex!, "rootfs", "x"))).toBe(false);
  });

  test("gain a privilege, by programs with setuid or devices of its image either", async () => {
    const image = await imported({ prepare: "mkdir setuid; cp bin/busybox setuid/id; chmod 6755 setuid/id" });
    const { said } = await tried({
      image,
      command: [
        "sh",
        "-c",
        "grep -E '^(Cap(Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp):' /proc/self/status; /setuid/id -u; id -u",
      ],
    });
    expect(said).toMatch(/CapPrm:\s0+\nCapEff:\s0+\nCapBnd:\s0+\nCapAmb:\s0+\nNoNewPrivs:\s1\nSeccomp:\s2/);
    const uid = HOST_UID === 0 ? 62_017 : HOST_UID;
    expect(said.trim().split("\n").slice(-2)).toEqual([String(uid), String(uid)]);
  });

  test("become root by naming the step's user so, or have its code loaded while privileges are left", async () => {
    const user = HOST_UID === 0 ? 62_017 : HOST_UID;
    const image = await imported({
      files: {
        "etc/passwd": `${user}:x:0:0:::\n`,
        "etc/group": `${user}:x:0:\n`,
        "etc/nsswitch.conf": "passwd: evil\ngroup: evil\n",
        "etc/ld.so.preload": "/lib/evil.so\n",
        "lib/evil.so": "not a library",
        "lib/libnss_evil.so.2": "not a library",
        "run/insitu/sh": { text: "#!/bin/sh\necho EVIL", mode: 0o755 },
        "run/insitu/lib/libc.so.6": "not a library",
      },
    });
    const { said, result } = await tried({
      image,
      command: ["sh", "-c", "id -u; id -g; ls /etc/ld.so.preload; cat /etc/passwd"],
    });
    expect(result.status).toBe("succeeded");
    expect(said.split("\n").slice(0, 2)).toEqual([
      String(user),
      String(HOST_UID === 0 ? user : process.getgid!()),
    ]);
    expect(said).not.toMatch(/EVIL|ERROR|evil/);
    expect(said).toMatch(/No such file/);
  });

  test("see the host's processes, or signal them", async () => {
    const victim = spawn("sleep", ["60"]);
    await once(victim, "spawn");
    try {
      const { said, result } = await script(`ls -d /proc/[0-9]* | grep -c .; kill -9 ${victim.pid}`);
      expect(Number(said.split("\n")[0])).toBeLessThan(8);
      expect(result.status).toBe("failed");
      expect(victim.exitCode ?? victim.signalCode).toBeNull();
    } finally {
      victim.kill("SIGKILL");
    }
  });

  test("reach the host's loopback or a metadata address", async () => {
    const server = createServer((socket) => socket.end(SECRET)).listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as { port: number };
    try {
      const ask = (address: string) => `nc -w 2 ${address} </dev/null || true`;
      expect((await script(ask(`127.0.0.1 ${port}`))).said).toMatch(/refused/i);
      expect((await script(ask("169.254.169.254 80"))).said).toMatch(/unreachable/i);
    } finally {
      server.close();
    }
  });

  test.each([
    ["a user namespace", "unshare -U true"],
    ["a mount", "mount -t tmpfs none /tmp"],
    ["another root", "chroot / true"],
    ["a device", "mknod /tmp/null c 1 3"],
  ])("make %s", async (_name, text) => {
    expect((await script(text)).result.status).toBe("failed");
  });

  test("live on after its cancellation", async () => {
    const mark = `insitu-container-${process.pid}-${++count}`;
    const image = await imported();
    const hide = `trap "" TERM; setsid env -i sh -c 'exec >/dev/null 2>&1; : ${mark}; sleep 300; :' & echo up; sleep 300`;
    const { execution, written } = await attempt({ image, command: ["sh", "-c", hide] });
    while (!written.text.includes("up") || running(mark) < 2) await systemClock.sleep(10);
    execution.stop("cancelled", "test");
    expect((await execution.done).status).toBe("cancelled");
    for (let i = 0; i < 100 && running(mark) > 0; i++) await systemClock.sleep(20);
    expect(running(mark)).toBe(0);
  });
});

describe.skipIf(NO_IMAGES !== undefined)("a step of an image is refused", () => {
  test("where the image is not at the site, with what to import", async () => {
    const image = `registry.example/test@sha256:${"0".repeat(64)}`;
    const { result } = await tried({ image });
    expect(result).toMatchObject({ status: "refused", error: { code: "image.missing" } });
    expect(result.error?.message).toContain("insitu-agent images import");
    expect(result.error?.message).toContain(image);
  });

  test("without a box", async () => {
    const { result } = await tried({ image: await imported() }, {}, { boxed: false });
    expect(result).toMatchObject({ status: "refused", error: { code: "sandbox" } });
  });

  test("when neither the image nor the step says what to run", async () => {
    const { result } = await tried({ image: await imported() });
    expect(result).toMatchObject({ status: "refused", error: { code: "image.no-command" } });
  });
});

function running(mark: string): number {
  return readdirSync("/proc")
    .filter((entry) => /^\d+$/.test(entry))
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, "latin1").includes(mark);
      } catch {
        return false; // gone meanwhile
      }
    }).length;
}
