/**
 * A nats-server as a child process: the embedded default of a control plane on one machine.
 *
 * The child has its own process group, so that Ctrl-C in a terminal reaches the control plane alone and the
 * parts stop in order. A server that a killed control plane left behind is stopped before a new one starts.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { mkdir, open, rename, unlink } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { connect } from "nats";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import { signedBy } from "./jetstream.ts";
import { stopLeftOver } from "./nats-left-over.ts";
import { adoptDefaultAccount } from "./nats-store-directory.ts";

/** `undefined` in `publish` or `subscribe` allows everything; an empty list nothing. */
export interface NatsUser {
  user: string;
  password: string;
  publish?: readonly string[];
  subscribe?: readonly string[];
}

/** Operator mode: who may do what is in signed tokens, which the server is told while it runs. */
export interface NatsOperatorMode {
  operatorJwt: string;
  systemAccount: string;
  /** JWTs of accounts by their public key: what the server knows before it is told of others. */
  preload: Readonly<Record<string, string>>;
  /** Public key of the account that has the streams, also those that were made before there were accounts. */
  streamsAccount: string;
  /** To see that the server answers. */
  credentials: { readonly jwt: string; readonly seed: string };
}

/** The part of pino's logger that is used here. */
export interface NatsServerLog {
  debug(fields: object, text: string): void;
  info(fields: object, text: string): void;
  warn(fields: object, text: string): void;
}

export interface NatsServerOptions {
  /** Path of the nats-server binary. */
  binary: string;
  /** Holds the configuration, the pid file and the streams; made when missing. One server at a time. */
  directory: string;
  host: string;
  /** 0 takes a free one, and keeps it over `restart`. */
  port: number;
  /** At least one, without `operator`; the first is used to see that the server answers. */
  users: readonly NatsUser[];
  /** In place of `users`. */
  operator?: NatsOperatorMode;
  tls?: { certFile: string; keyFile: string; caFile: string };
  /** Sync each write to the disk before it is acknowledged. Servers before 2.10 do not know this and do not start. */
  syncAlways?: boolean;
  log: NatsServerLog;
  clock: Clock;
  /** Ends a start that is under way. Stopping a running server is the caller's, with `stop`. */
  signal?: AbortSignal;
}

export interface NatsExit {
  code: number | null;
  signal: NodeJS.Signals | null;
  /** True after `stop` or `restart`. */
  expected: boolean;
}

export interface NatsServer extends AsyncDisposable {
  /** `nats://host:port`, or `tls://…`. */
  readonly url: string;
  readonly port: number;
  readonly pid: number;
  /** Of the process that runs now; after a `restart`, read it again. Never rejects. */
  readonly exited: Promise<NatsExit>;
  /** Replaces the users. Connections of users that are gone or changed are cut, others are left alone. */
  setUsers(users: readonly NatsUser[]): Promise<void>;
  /** Stops the server if it runs, and starts it again on the same port and data. */
  restart(signal?: AbortSignal): Promise<void>;
  /** Ends the process as if it had ended unasked: whoever keeps it running starts it again. Nothing when none runs. */
  recycle(): Promise<void>;
  /** Tells each line of the server's log, also of later processes. @returns what ends that */
  onLine(listener: (line: string) => void): () => void;
  /** SIGTERM, then SIGKILL. Safe twice. */
  stop(): Promise<void>;
}

const MAX_PAYLOAD_BYTES = 8 * 1024 * 1024;
/**
 * More than any disk has. Left out, it is three quarters of what is free at the start, and servers up to 2.9 do not bring
 * back streams whose limits of bytes are above that: after the disk was full, or when it is nearly, they would be gone.
 */
const MAX_FILE_STORE_BYTES = 1024 ** 5;
const START_TIMEOUT_MS = 30_000;
const RELOAD_TIMEOUT_MS = 5_000;
const STOP_GRACE_MS = 10_000;

/**
 * Resolves when the server answers a connection, which it does after JetStream has recovered.
 *
 * @throws {InsituError} `store.unavailable` when it does not start, with its last words in the message;
 *   `unavailable` when another living process owns the directory.
 */
export async function startNatsServer(options: NatsServerOptions): Promise<NatsServer> {
  if (options.users.length === 0 && options.operator === undefined) {
    throw new InsituError(
      "internal",
      "a nats-server needs at least one user: without, it would be open to all",
    );
  }
  await mkdir(options.directory, { recursive: true, mode: 0o700 });
  await stopLeftOver({ directory: options.directory, configFile: configFile(options), clock: options.clock });
  if (options.operator) await adoptDefaultAccount(options.directory, options.operator.streamsAccount);
  const server = new ChildNatsServer(options);
  await server.launch(options.signal);
  return server;
}

/**
 * Starts a server again each time it ends unasked, until the signal aborts. Resolves then; never rejects.
 *
 * Waits from 0.1 to 5 seconds between tries, so that a server that cannot start does not spin.
 */
export async function keepNatsServerRunning(
  server: NatsServer,
  options: { clock: Clock; log: NatsServerLog; signal: AbortSignal },
): Promise<void> {
  const { clock, log, signal } = options;
  const aborted = new Promise<undefined>((resolve) => {
    if (signal.aborted) resolve(undefined);
    else signal.addEventListener("abort", () => resolve(undefined), { once: true });
  });
  let delayMs = 100;
  for (;;) {
    const exit = await Promise.race([server.exited, aborted]);
    if (exit === undefined || signal.aborted || exit.expected) return;
    log.warn({ code: exit.code, signal: exit.signal }, "nats-server ended unasked; starting it again");
    try {
      await clock.sleep(delayMs, signal);
      await server.restart(signal);
      delayMs = 100;
    } catch (err) {
      if (signal.aborted) return;
      log.warn({ err }, "nats-server did not start again");
      delayMs = Math.min(delayMs * 2, 5_000);
    }
  }
}

class ChildNatsServer implements NatsServer {
  readonly #options: NatsServerOptions;
  #port: number;
  #users: readonly NatsUser[];
  #child: ChildProcess | undefined;
  #exited: Promise<NatsExit> = Promise.resolve({ code: null, signal: null, expected: true });
  #expectExit = false;
  /** Told each line of the server's log. */
  readonly #listeners = new Set<(line: string) => void>();
  /** Changes of users, restarts and stops happen one after another. */
  #queue: Promise<unknown> = Promise.resolve();
  /** A parent that ends by an exception takes its server along. */
  readonly #onParentExit = () => this.#child?.kill("SIGTERM");

  constructor(options: NatsServerOptions) {
    this.#options = options;
    this.#port = options.port;
    this.#users = options.users;
  }

  get url(): string {
    return `${this.#options.tls ? "tls" : "nats"}://${this.#authority()}`;
  }
  get port(): number {
    return this.#port;
  }
  get pid(): number {
    return this.#child?.pid ?? 0;
  }
  get exited(): Promise<NatsExit> {
    return this.#exited;
  }

  async launch(signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    await this.#writeConfig();
    const { binary, clock, log } = this.#options;
    const child = spawn(binary, ["-c", configFile(this.#options)], {
      stdio: ["ignore", "ignore", "pipe"],
      detached: true,
    });
    this.#child = child;
    this.#expectExit = false;
    const lastWords: string[] = [];
    const listening = deferred<number>();
    this.#exited = new Promise((resolve) => {
      child.once("exit", (code, exitSignal) =>
        resolve({ code, signal: exitSignal, expected: this.#expectExit }),
      );
      child.once("error", (err) => {
        lastWords.push(err.message);
        if (child.pid === undefined) resolve({ code: null, signal: null, expected: false });
      });
    });
    const lines = createInterface({ input: child.stderr as NodeJS.ReadableStream });
    lines.on("line", (line) => {
      lastWords.push(line.replace(/^\[\d+\] \S+ \S+ /, ""));
      if (lastWords.length > 8) lastWords.shift();
      const port = /Listening for client connections on .*:(\d+)$/.exec(line)?.[1];
      if (port !== undefined) listening.resolve(Number(port));
      for (const listener of this.#listeners) listener(line);
      log.debug({ line }, "nats-server");
    });
    process.on("exit", this.#onParentExit);
    void this.#exited.then(() => process.off("exit", this.#onParentExit));

    try {
      this.#port = await bounded(
        Promise.race([listening.promise, this.#exited.then(failWith(() => "ended at once"))]),
        { ms: START_TIMEOUT_MS, what: "did not listen in time", clock, ...(signal && { signal }) },
      );
      await this.#answers();
      // Names the port that was free, for whoever reads there how to reach this server.
      await this.#writeConfig();
    } catch (err) {
      // It was not asked to end: whoever keeps it running tries again.
      await this.#terminate(false);
      if (signal?.aborted) throw signal.reason;
      throw new InsituError(
        "store.unavailable",
        `nats-server (${binary}) did not start in ${this.#options.directory}: ${messageOf(err)}. Its last words: ${lastWords.join(" | ")}`,
        { cause: err },
      );
    }
    log.info({ pid: this.pid, url: this.url }, "nats-server is ready");
  }

  setUsers(users: readonly NatsUser[]): Promise<void> {
    return this.#enqueue(async () => {
      this.#users = users;
      await this.#writeConfig();
      if (this.#child?.exitCode !== null || this.#child.signalCode !== null) return; // read at the next start
      await this.#reload(this.#child);
    });
  }

  restart(signal?: AbortSignal): Promise<void> {
    return this.#enqueue(async () => {
      await this.#terminate();
      await this.launch(signal);
    });
  }

  recycle(): Promise<void> {
    return this.#enqueue(() => this.#terminate(false));
  }

  onLine(listener: (line: string) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  stop(): Promise<void> {
    return this.#enqueue(() => this.#terminate());
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  #enqueue(action: () => Promise<void>): Promise<void> {
    const result = this.#queue.then(action);
    this.#queue = result.catch(() => {}); // the caller has the error; the next in line must still run
    return result;
  }

  async #answers(): Promise<void> {
    const user = this.#users[0];
    const { tls, operator } = this.#options;
    const connection = await connect({
      servers: [this.#authority()],
      ...(operator
        ? { authenticator: signedBy(operator.credentials) }
        : { user: user?.user ?? "", pass: user?.password ?? "" }),
      reconnect: false,
      timeout: RELOAD_TIMEOUT_MS,
      ...(tls && { tls: { caFile: tls.caFile } }),
    });
    await connection.close();
  }

  async #reload(child: ChildProcess): Promise<void> {
    const { promise, resolve, reject } = deferred<void>();
    const listener = (line: string) => {
      if (line.includes("Reloaded server configuration")) resolve();
      if (line.includes("Failed to reload"))
        reject(new InsituError("internal", `nats-server refused its users: ${line}`));
    };
    this.#listeners.add(listener);
    try {
      child.kill("SIGHUP");
      await bounded(Promise.race([promise, this.#exited.then(() => undefined)]), {
        ms: RELOAD_TIMEOUT_MS,
        what: "did not read its users again in time",
        clock: this.#options.clock,
      });
    } finally {
      this.#listeners.delete(listener);
    }
  }

  async #terminate(expected = true): Promise<void> {
    const child = this.#child;
    if (child === undefined || child.pid === undefined) return;
    this.#expectExit = expected;
    if (child.exitCode === null && child.signalCode === null) {
      child.kill("SIGTERM");
      const hard = this.#options.clock.after(STOP_GRACE_MS, () => child.kill("SIGKILL"));
      await this.#exited;
      hard.cancel();
    }
    await unlink(join(this.#options.directory, "nats.pid")).catch(() => {}); // nats-server removes it itself, mostly
  }

  /** Renamed into place, so that a reload never reads half a file. Readable by its owner alone: it holds passwords. */
  async #writeConfig(): Promise<void> {
    const path = configFile(this.#options);
    const file = await open(`${path}.new`, "w", 0o600);
    try {
      await file.writeFile(`${JSON.stringify(this.#config(), null, 1)}\n`);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(`${path}.new`, path);
  }

  #authorization(): object {
    return {
      users: this.#users.map(({ user, password, publish, subscribe }) => ({
        user,
        password,
        permissions: {
          publish: publish === undefined ? ">" : allowOnly(publish),
          subscribe: subscribe === undefined ? ">" : allowOnly(subscribe),
        },
      })),
    };
  }

  /** An IPv6 address stands in brackets. */
  #authority(): string {
    const { host } = this.#options;
    return `${host.includes(":") ? `[${host}]` : host}:${this.#port}`;
  }

  /** JSON is a subset of nats-server's configuration language. */
  #config(): object {
    const { directory, host, tls, syncAlways, operator } = this.#options;
    return {
      server_name: "insitu",
      host,
      port: this.#port === 0 ? -1 : this.#port,
      pid_file: join(directory, "nats.pid"),
      max_payload: MAX_PAYLOAD_BYTES,
      jetstream: {
        store_dir: directory,
        max_file_store: MAX_FILE_STORE_BYTES,
        ...(syncAlways ? { sync_interval: "always" } : {}),
      },
      ...(operator ? operatorSection(operator, directory) : { authorization: this.#authorization() }),
      ...(tls && { tls: { cert_file: tls.certFile, key_file: tls.keyFile, ca_file: tls.caFile } }),
    };
  }
}

/**
 * `full`: each server keeps all accounts in a directory, is told of changes while it runs, and enforces revocations
 * also after a restart.
 */
function operatorSection(operator: NatsOperatorMode, directory: string): object {
  return {
    operator: operator.operatorJwt,
    system_account: operator.systemAccount,
    resolver: { type: "full", dir: join(directory, "accounts"), allow_delete: false, interval: "2m" },
    resolver_preload: operator.preload,
  };
}

/** An empty allow-list would allow everything, so nothing is said by denying all. */
function allowOnly(subjects: readonly string[]): object {
  return subjects.length === 0 ? { deny: [">"] } : { allow: subjects };
}

function configFile(options: { directory: string }): string {
  return join(options.directory, "nats.conf.json");
}

/** `Promise.withResolvers`, which Node 20 has not. */
function deferred<T>(): {
  promise: Promise<T>;
  resolve: (value: T) => void;
  reject: (reason: unknown) => void;
} {
  let resolve: (value: T) => void = () => {};
  let reject: (reason: unknown) => void = () => {};
  const promise = new Promise<T>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  return { promise, resolve, reject };
}

function failWith(message: () => string): () => never {
  return () => {
    throw new Error(message());
  };
}

function messageOf(err: unknown): string {
  return err instanceof Error ? err.message : String(err);
}

async function bounded<T>(
  promise: Promise<T>,
  limit: { ms: number; what: string; clock: Clock; signal?: AbortSignal },
): Promise<T> {
  const late = deferred<never>();
  const timer = limit.clock.after(limit.ms, () => late.reject(new InsituError("timeout", limit.what)));
  const onAbort = () => late.reject(limit.signal?.reason);
  limit.signal?.addEventListener("abort", onAbort, { once: true });
  try {
    return await Promise.race([promise, late.promise]);
  } finally {
    timer.cancel();
    limit.signal?.removeEventListener("abort", onAbort);
  }
}
