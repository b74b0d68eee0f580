/**
 * Steps that are let out to a few hosts, and try to get further: the real bubblewrap, supervisor and executor, real
 * servers on the host's loopback, the attacker's own programs.
 *
 * Each attempt prints what it got; where something must not work, a control shows that the same command works without
 * a box or with the target on the list, so that none can pass because the command was wrong.
 */
import { once } from "node:events";
import { chmodSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { createServer as createWebServer } from "node:http";
import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import { hostname } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { leaseKey, offerOf, type TestDirectory, testDirectory } from "../../agent/agent.fixture.ts";
import { ProcessExecutor } from "../../agent/executors/process-executor.ts";
import { WORK, workspaceAt } from "../../agent/executors/workspace.ts";
import { NO_SANDBOX, realSandbox, Written } from "../../agent/sandbox/sandbox.fixture.ts";
import { CONNECTIONS_MAX } from "../../agent/sandbox/way-out.ts";
import { SUPERVISOR_REVISION } from "../../agent/supervisor/protocol.ts";
import { TestSupervisors } from "../../agent/supervisor/supervisor.fixture.ts";
import { systemClock } from "../../shared/system.ts";
import { stepSpec } from "../support/specs.ts";

let directory: TestDirectory;
let supervisors: TestSupervisors;
let stateDir: string;
let server: Server;
let port: number;
let sockets: Socket[];
let epochs = 0;

beforeEach(async () => {
  directory = testDirectory();
  chmodSync(directory.path, 0o755);
  stateDir = join(directory.path, "state");
  mkdirSync(stateDir);
  supervisors = new TestSupervisors(stateDir);
  sockets = [];
  server = createServer((socket) => {
    sockets.push(socket);
    socket.on("error", () => undefined);
    // Like a server that speaks first, and says back what it is told.
    socket.write("hello\n");
    socket.pipe(socket);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  port = (server.address() as AddressInfo).port;
});
afterEach(async () => {
  await supervisors.stop();
  for (const socket of sockets) socket.destroy();
  server.close();
  directory[Symbol.dispose]();
});

/** As the next process of the agent finds what the one before has left running. */
async function nextSupervisors(): Promise<TestSupervisors> {
  const [name] = readdirSync(join(stateDir, "supervisors"));
  const home = join(stateDir, "supervisors", name!);
  const about = { socketPath: join(home, "socket"), pid: process.pid, revision: SUPERVISOR_REVISION };
  writeFileSync(join(home, "about.json"), JSON.stringify(about));
  const next = new TestSupervisors(stateDir);
  await next.find();
  return next;
}

interface Options {
  allow?: string[];
  egress?: string[];
  boxed?: boolean;
  change?: object;
}

async function executorOf(egress: string[], of: TestSupervisors, boxed = true): Promise<ProcessExecutor> {
  return new ProcessExecutor({
    clock: systemClock,
    stateDir,
    datasets: {},
    stepEnv: { PATH: process.env.PATH ?? "" },
    killGraceMs: 300,
    supervisors: of,
    sandbox: boxed ? await realSandbox({ stateDir, config: { egress } }) : NO_SANDBOX,
  });
}

async function attempt(script: string, { allow, egress = allow, boxed = true, change = {} }: Options) {
  const executor = await executorOf(egress ?? [], supervisors, boxed);
  const step = stepSpec("load", {
    executor: { kind: "process", argv: ["bash", "-c", script] },
    ...(allow ? { network: { allow } } : {}),
    ...change,
  });
  const written = new Written();
  const offer = offerOf({ step, lease: leaseKey({ epoch: ++epochs }) });
  return { execution: executor.start(offer, written), written, offer };
}

async function tried(script: string, options: Options) {
  const { execution, written } = await attempt(script, options);
  const result = await execution.done;
  return { said: written.text, result };
}

/** Ends its side after it has said the text; shows what comes, or the code of the failure. */
function dial(host: string, to: number | string, text = "ping"): string {
  return `node -e 'const s=require("net").connect(${to},"${host}",()=>s.end("${text}"));s.on("data",d=>process.stdout.write(String(d)));s.on("error",e=>console.log(e.code))'`;
}

/** The same through the step's proxy, with CONNECT. */
function connect(target: string, text = "ping"): string {
  return `node -e 'const u=new URL(process.env.HTTPS_PROXY);const s=require("net").connect(u.port,u.hostname,()=>s.write("CONNECT ${target} HTTP/1.1\\r\\n\\r\\n"));let h="";s.on("data",d=>{process.stdout.write(String(d));if(!h.includes("\\r\\n\\r\\n")&&(h+=d).includes("\\r\\n\\r\\n"))s.end("${text}")})'`;
}

describe("a step that is let out", () => {
  test("reaches an address of its list by the listener that stands for it", async () => {
    const target = `127.0.0.1:${port}`;
    const { said, result } = await tried(
      `a=$INSITU_CONNECT_127_0_0_1_${port}; exec 3<>/dev/tcp/\${a%:*}/\${a#*:}; head -n1 <&3; echo ping >&3; head -n1 <&3`,
      { allow: [target] },
    );
    expect(said).toBe("hello\nping\n");
    expect(result).toMatchObject({
      status: "succeeded",
      network: [{ target, connections: 1, failures: 0, sentBytes: 5, receivedBytes: 11 }],
      sandbox: { kind: "bubblewrap", network: "allow-list" },
    });
  });

  test("reaches it through its proxy, by CONNECT", async () => {
    const target = `127.0.0.1:${port}`;
    const { said, result } = await tried(connect(target), { allow: [target] });
    expect(said).toMatch(/^HTTP\/1\.1 200 .*\r\n\r\nhello\nping$/s);
    expect(result).toMatchObject({ network: [{ target, connections: 1, sentBytes: 4, receivedBytes: 10 }] });
  });

  test("speaks HTTP with it as if there were nothing between, and by its proxy with the whole URL or by SOCKS 5", async () => {
    const heard: string[] = [];
    const web = createWebServer((request, response) => {
      heard.push(
        `${request.method} ${request.url} ${request.headers.host} ${request.headers["proxy-connection"]}`,
      );
      request.pipe(response);
    }).listen(0, "127.0.0.1");
    await once(web, "listening");
    const { port: to } = web.address() as AddressInfo;
    const url = `http://127.0.0.1:${to}/a?b=c`;
    try {
      const { said } = await tried(
        `curl -sS -d one "$HERE/a?b=c"; curl -sS --noproxy '' -x "$HTTP_PROXY" -H 'Proxy-Connection: close' -d two ${url}; curl -sS --noproxy '' -x "$ALL_PROXY" -d three ${url}`,
        { allow: [`127.0.0.1:${to}`], change: { env: { HERE: `http://127.77.1.1:${to}` } } },
      );
      expect(said).toBe("onetwothree");
      expect(heard).toEqual([
        `POST /a?b=c 127.77.1.1:${to} undefined`,
        `POST /a?b=c 127.0.0.1:${to} undefined`,
        `POST /a?b=c 127.0.0.1:${to} undefined`,
      ]);
    } finally {
      web.close();
    }
  });

  test("is told by its proxy what is not on the list, and the name stays at the site", async () => {
    const { said, result } = await tried(connect("evil.example:443"), { allow: [`127.0.0.1:${port}`] });
    expect(said).toMatch(/^HTTP\/1\.1 403 Forbidden\r\n.*evil\.example:443 is not on the list of the step/s);
    expect(result.network).toEqual([
      { target: null, connections: 0, failures: 1, sentBytes: 0, receivedBytes: 0 },
    ]);
    expect(JSON.stringify(result)).not.toContain("evil");
  });

  test("sends what it wrote last, though it ends at once", async () => {
    const target = `127.0.0.1:${port}`;
    const received = new Promise<number>((resolve) => {
      let bytes = 0;
      server.removeAllListeners("connection");
      server.on("connection", (socket) => {
        sockets.push(socket);
        socket.on("data", (data) => {
          bytes += data.length;
        });
        socket.on("end", () => resolve(bytes));
        socket.on("error", () => resolve(-1));
      });
    });
    const script = `a=$INSITU_CONNECT_127_0_0_1_${port}; head -c 1000000 /dev/zero >/dev/tcp/\${a%:*}/\${a#*:}`;
    const { result } = await tried(script, { allow: [target] });
    expect(await received).toBe(1_000_000);
    expect(result).toMatchObject({ status: "succeeded", network: [{ sentBytes: 1_000_000 }] });
  });

  test("goes on when its agent is gone, and the figures are there when it is back", async () => {
    const target = `127.0.0.1:${port}`;
    const script = `${connect(target)}; echo; until [ -e go ]; do sleep 0.05; done; ${connect(target)}`;
    const { written, offer } = await attempt(script, { allow: [target] });
    while (!written.text.includes("ping")) await systemClock.sleep(10);
    supervisors.close();
    const again = await nextSupervisors();
    const executor = await executorOf([target], again);
    const resumed = executor.resume(offer, written, 0)!;
    writeFileSync(join(workspaceAt(join(stateDir, WORK), offer.lease).work, "go"), "");
    const result = await resumed.done;
    expect(result).toMatchObject({
      status: "succeeded",
      network: [{ target, connections: 2, sentBytes: 8 }],
    });
    again.close();
  });
});

describe("a step that is let out to some hosts cannot", () => {
  const others: [string, (other: number) => string][] = [
    ["another port of the host's loopback, directly", (other) => dial("127.0.0.1", other)],
    ["another port, by the address that stands for its target", (other) => dial("127.77.1.1", other)],
    ["another port, through its proxy", (other) => connect(`127.0.0.1:${other}`)],
    ["a name for the host itself, through its proxy", (other) => connect(`${hostname()}:${other}`)],
    ["another spelling of an address", (other) => connect(`[::ffff:127.0.0.1]:${other}`)],
  ];
  test.each(others)("reach %s", async (_name, script) => {
    const secret = createServer((socket) => socket.end("SECRET")).listen(0);
    await once(secret, "listening");
    const { port: other } = secret.address() as AddressInfo;
    try {
      const { said } = await tried(script(other), { allow: [`127.0.0.1:${port}`] });
      expect(said).toMatch(/ECONNREFUSED|HTTP\/1\.1 (403|400)/);
      expect(said).not.toContain("SECRET");
      const control = dial("127.0.0.1", other);
      expect((await tried(control, { boxed: false })).said).toContain("SECRET");
    } finally {
      secret.close();
    }
  });

  test("reach a metadata address or a name server", async () => {
    const allow = [`127.0.0.1:${port}`];
    expect((await tried(dial("169.254.169.254", 80), { allow })).said).toMatch(/ENETUNREACH|EHOSTUNREACH/);
    expect((await tried(connect("169.254.169.254:80"), { allow })).said).toMatch(/HTTP\/1\.1 403/);
    const lookup = `node -e 'require("dns").lookup("example.org",e=>console.log(e?.code))'`;
    expect((await tried(lookup, { allow })).said).toMatch(/EAI_AGAIN|ENOTFOUND/);
  });

  test.each([
    ["a link-local address", "169.254.169.254:80", ["*:80"]],
    ["loopback", "127.0.0.1:9", ["*:*"]],
    ["an address of this host by its name", `${hostname().toLowerCase()}:9`, ["*:*"]],
  ])(
    "reach %s that is on its list, where the site has not named the address",
    async (_name, target, egress) => {
      const { said, result } = await tried(connect(target), { allow: [target], egress });
      expect(said).toMatch(/HTTP\/1\.1 502 Bad Gateway\r\n.*steps are not let out to it/s);
      expect(result).toMatchObject({ network: [{ target, connections: 0, failures: 1, sentBytes: 0 }] });
    },
  );

  test("be started where the site does not allow the target, or nothing boxes it", async () => {
    const allow = [`127.0.0.1:${port}`];
    const closed = await tried("true", { allow, egress: ["127.0.0.1:1"] });
    expect(closed.result).toMatchObject({ status: "refused", error: { code: "sandbox" } });
    expect(closed.result.error?.message).toMatch(/lets no step out to 127\.0\.0\.1:\d+; .*sandbox\.egress/);
    const plain = await tried("true", { allow, boxed: false });
    expect(plain.result.error?.message).toMatch(/no sandbox .* cannot let a step out/);
  });

  test("use the way out of another step, an abstract socket, or a descriptor of its supervisor", async () => {
    const allow = [`127.0.0.1:${port}`];
    const other = await attempt("echo up; sleep 60", { allow });
    while (!other.written.text.includes("up")) await systemClock.sleep(10);
    try {
      // Same addresses in both boxes, and a step without a list has neither.
      const { said } = await tried(
        `${dial("127.77.1.1", port)}; ${dial("127.77.0.1", 3128)}; grep -c @ /proc/net/unix`,
        {},
      );
      expect(said).toBe("ECONNREFUSED\nECONNREFUSED\n0\n");
      const descriptors = "ls /proc/self/fd";
      expect((await tried(descriptors, { allow })).said).toBe((await tried(descriptors, {})).said);
    } finally {
      other.execution.stop("cancelled", "test");
      expect((await other.execution.done).status).toBe("cancelled");
    }
  });

  test("hold its target after its end", async () => {
    const closed = new Promise<void>((resolve) => {
      server.on("connection", (socket) => socket.once("close", () => resolve()));
    });
    const script = `a=$INSITU_CONNECT_127_0_0_1_${port}; setsid bash -c "exec 3<>/dev/tcp/\${a%:*}/\${a#*:}; head -n1 <&3; sleep 60" & sleep 0.5`;
    expect((await tried(script, { allow: [`127.0.0.1:${port}`] })).said).toBe("hello\n");
    await closed;
  });

  test("take all of its supervisor's descriptors", async () => {
    const target = `127.0.0.1:${port}`;
    const script = `node -e 'let open=0,broken=0;const go=()=>{if(open+broken===300){console.log(open<=${CONNECTIONS_MAX},broken>0);process.exit()}};for(let i=0;i<300;i++){const s=require("net").connect(3128,"127.77.0.1",()=>s.write("CONNECT ${target} HTTP/1.1\\r\\n\\r\\n"));s.once("data",()=>{open++;go()});s.on("error",()=>{broken++;go()})}'`;
    const { said, result } = await tried(script, { allow: [target] });
    expect(said).toBe("true true\n");
    expect(result.network?.at(-1)).toMatchObject({ target: null, failures: expect.any(Number) });
    expect((await tried(connect(target), { allow: [target] })).said).toContain("ping");
  });
});
