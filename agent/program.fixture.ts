/** The program as it is run, at a site of its own: a process, a real gateway's protocol, a real work queue. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { AckPolicy, connect, headers, type NatsConnection, RetentionPolicy } from "nats";
import { systemClock } from "../shared/system.ts";
import { OFFER_SIGNATURE_HEADER, type Offer, type Outcome } from "../shared/wire/attempt.ts";
import { decodeLogEntries } from "../shared/wire/log-codec.ts";
import { startTestNats, type TestNats } from "../test/support/nats.ts";
import { stepSpec } from "../test/support/specs.ts";
import { offerOf, offerSigner, type TestDirectory, testDirectory } from "./agent.fixture.ts";
import { type Bundle, bundleOf } from "./bundle.fixture.ts";
import { saveIdentity } from "./enrolment/identity.ts";
import { createAuthority, TestGateway } from "./uplink/gateway.fixture.ts";

export function bundleProgram(): Promise<Bundle> {
  const others = {
    "insitu-supervisor": new URL("./supervisor/main.ts", import.meta.url),
    "insitu-evaluator": new URL("./policy/evaluator.ts", import.meta.url),
  };
  return bundleOf(new URL("./main.ts", import.meta.url), others);
}

/** Agent and supervisor, which are killed where `kill-at.json` says; see `kill-points.fixture.ts`. */
export function bundleKilledProgram(): Promise<Bundle> {
  const supervisor = {
    "insitu-supervisor": new URL("./supervisor/killed-supervisor.fixture.ts", import.meta.url),
  };
  const lmdb = new URL("./kill-points.fixture.ts", import.meta.url);
  return bundleOf(new URL("./main.ts", import.meta.url), supervisor, { lmdb });
}

export const shell = (text: string, change: Partial<Offer> = {}): Offer =>
  offerOf({
    step: stepSpec("fit", { executor: { kind: "process", argv: ["sh", "-ec", text] } }),
    ...change,
  });

/** Also false for a zombie, which holds nothing. */
export const exists = (pid: string): boolean =>
  existsSync(`/proc/${pid}`) && !/ Z /.test(readFileSync(`/proc/${pid}/stat`, "utf8"));

/** Most steps of tests speak with them through files beside the agent's state, which no boxed one sees. */
const SANDBOX = ["--sandbox", "off"];

export interface StartOptions {
  program?: string;
  node?: string;
  env?: NodeJS.ProcessEnv;
  flags?: string[];
  stderr?: "pipe" | "inherit";
}

export class TestSite implements AsyncDisposable {
  readonly gateway: TestGateway;
  readonly centre: NatsConnection;
  readonly path: string;
  readonly #program: string;
  readonly #directory: TestDirectory;
  readonly #nats: TestNats;
  readonly #signer = offerSigner();
  readonly #children: ChildProcess[] = [];

  private constructor(
    program: string,
    parts: { directory: TestDirectory; nats: TestNats; centre: NatsConnection; gateway: TestGateway },
  ) {
    this.#program = program;
    this.#directory = parts.directory;
    this.path = parts.directory.path;
    this.#nats = parts.nats;
    this.centre = parts.centre;
    this.gateway = parts.gateway;
  }

  /** `ackWaitMs`: until the queue gives an offer again that was not acknowledged. */
  static async open(
    program: Bundle,
    options: { ackWaitMs?: number; directory?: TestDirectory } = {},
  ): Promise<TestSite> {
    const { ackWaitMs = 30_000, directory = testDirectory() } = options;
    const authority = await createAuthority();
    const nats = await startTestNats();
    const centre = await connect({
      servers: nats.url,
      user: nats.user,
      pass: nats.password,
      maxReconnectAttempts: -1,
    });
    const manager = await centre.jetstreamManager();
    await manager.streams.add({ name: "WORK", subjects: ["work.>"], retention: RetentionPolicy.Workqueue });
    await manager.consumers.add("WORK", {
      durable_name: "env-dream",
      ack_policy: AckPolicy.Explicit,
      ack_wait: ackWaitMs * 1_000_000,
    });
    const gateway = new TestGateway(authority);
    const site = new TestSite(program.path, { directory, nats, centre, gateway });
    const offerPublicKeyPem = site.#signer.publicKeyPem;
    gateway.welcome = {
      nats: {
        servers: [nats.url],
        user: nats.user,
        password: nats.password,
        inboxPrefix: "_INBOX.a1",
        stream: "WORK",
        consumer: "env-dream",
        caPem: Buffer.alloc(0),
      },
      offerPublicKeyPem,
    };
    await gateway.start();
    saveIdentity(directory.path, authority.identity(gateway.port, { offerPublicKeyPem }));
    return site;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const child of this.#children.splice(0)) await kill(child);
    // Their steps end with them.
    for (const pid of this.supervisors()) signal(pid, "SIGTERM");
    while (this.supervisors().some((pid) => exists(String(pid)))) await systemClock.sleep(10);
    this.gateway.stop();
    await this.centre.close();
    await this.#nats.stop();
    this.#directory[Symbol.dispose]();
  }

  start(options: StartOptions = {}): ChildProcess {
    const { env = process.env, flags = [], node = process.execPath } = options;
    const program = options.program ?? this.#program;
    const args = [program, "run", "--state-dir", this.path, "--slots", "2", ...SANDBOX, ...flags];
    const stdio = ["ignore", "ignore", options.stderr ?? "inherit", "ipc"] as const;
    const child = spawn(node, args, { env, stdio: [...stdio] });
    this.#children.push(child);
    return child;
  }

  /** A configuration file of the site. */
  configOf(keys: object): string {
    const file = join(this.path, "agent.json");
    writeFileSync(file, JSON.stringify({ stateDir: this.path, ...keys }));
    return file;
  }

  /** Any other process that ends with the test. */
  keep<T extends ChildProcess>(child: T): T {
    this.#children.push(child);
    return child;
  }

  async publish(offer: Offer): Promise<void> {
    const payload = Buffer.from(JSON.stringify(offer));
    const head = headers();
    head.set(OFFER_SIGNATURE_HEADER, this.#signer.sign(payload));
    await this.centre.jetstream().publish("work.dream", payload, { headers: head });
  }

  /** In their order. What is sent again after a reconnect has the number that it had. */
  outcomes(): Outcome[] {
    const bySeq = new Map(this.gateway.reports.map(({ seq, payload }) => [seq, payload]));
    return [...bySeq.values()].flatMap((payload) => (payload.kind === "finished" ? [payload.outcome] : []));
  }

  ended(count = 1): Promise<void> {
    return this.gateway.until.holds(() => this.outcomes().length >= count);
  }

  hasStarted(count = 1): Promise<void> {
    const starts = () => this.gateway.reports.filter(({ payload }) => payload.kind === "started");
    return this.gateway.until.holds(() => starts().length >= count);
  }

  /** What is in a file of the site, once there is something. */
  async fileOf(name: string): Promise<string> {
    const path = join(this.path, name);
    while (!existsSync(path) || readFileSync(path, "utf8") === "") await systemClock.sleep(10);
    return readFileSync(path, "utf8").trim();
  }

  /** Process ids of the supervisors on record. */
  supervisors(): number[] {
    const base = join(this.path, "supervisors");
    if (!existsSync(base)) return [];
    return readdirSync(base).flatMap((id) => {
      try {
        const about = readFileSync(join(base, id, "about.json"), "utf8");
        return [(JSON.parse(about) as { pid: number }).pid];
      } catch {
        return []; // it has not said so yet, or has just left
      }
    });
  }

  /** The log that arrived, in order, each entry once as the centre keeps them. */
  logText(of: { runId?: string; epoch?: number } = {}): string {
    const { runId = "run-1", epoch = 1 } = of;
    const entries = this.gateway.chunks
      .filter((chunk) => chunk.runId === runId && chunk.epoch === epoch)
      .flatMap((chunk) => decodeLogEntries(chunk.encoding as "identity", chunk.entries));
    const bySeq = new Map(entries.map((entry) => [entry.seq, Buffer.from(entry.data)]));
    return Buffer.concat([...bySeq].sort(([x], [y]) => x - y).map(([, data]) => data)).toString();
  }
}

/** SIGKILL; resolves when it has gone. */
export async function kill(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = once(child, "exit");
  child.kill("SIGKILL");
  await gone;
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch {
    // gone already
  }
}
