/** A real nats-server for one suite: `await using nats = await startTestNats()`. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type NatsServer,
  type NatsServerOptions,
  type NatsUser,
  startNatsServer,
} from "../../control-plane/store/nats-server.ts";
import { findNatsServer } from "../../scripts/find-nats-server.mjs";
import { systemClock } from "../../shared/system.ts";

export interface TestNats extends AsyncDisposable {
  readonly url: string;
  readonly port: number;
  /** Of a user that may do everything. */
  readonly user: string;
  readonly password: string;
  readonly directory: string;
  readonly server: NatsServer;
  /** Takes the server away as a crash would, and resolves when it is gone. `restart` brings it back. */
  kill(): Promise<void>;
  restart(): Promise<void>;
  /** Stops the server and removes its directory. Safe twice. */
  stop(): Promise<void>;
}

/** On a free port of loopback, with its streams in a directory of its own. `users` come beside the one that may do all. */
export async function startTestNats(
  options: { users?: readonly NatsUser[]; tls?: NatsServerOptions["tls"] } = {},
): Promise<TestNats> {
  const directory = await mkdtemp(join(tmpdir(), "insitu-nats-"));
  const { path } = await findNatsServer();
  const user = "test";
  const password = "test";
  const server = await startNatsServer({
    binary: path,
    directory,
    host: "127.0.0.1",
    port: 0,
    users: [{ user, password }, ...(options.users ?? [])],
    ...(options.tls ? { tls: options.tls } : {}),
    log: { debug() {}, info() {}, warn() {} },
    clock: systemClock,
  });
  const stop = async () => {
    await server.stop();
    await rm(directory, { recursive: true, force: true });
  };
  return {
    url: server.url,
    port: server.port,
    user,
    password,
    directory,
    server,
    async kill() {
      const exited = server.exited;
      process.kill(server.pid, "SIGKILL");
      await exited;
    },
    restart: () => server.restart(),
    stop,
    [Symbol.asyncDispose]: stop,
  };
}
