/**
 * A supervisor as the first release had it: no revision in its hello, no `started.json`, no reason with its exit, and
 * a word that it does not know ends the connection. Runs one step at a time, without limits.
 */
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { z } from "zod";
import { onMessages } from "./protocol.ts";
import { SpoolWriter } from "./spool.ts";

const Spec = z.object({ key: z.string(), directory: z.string(), argv: z.array(z.string()), cwd: z.string() });
const Message = z.discriminatedUnion("op", [
  z.object({ op: z.literal("start"), spec: Spec }),
  z.object({ op: z.literal("attach"), key: z.string(), offset: z.number() }),
  z.object({ op: z.literal("read"), key: z.string(), offset: z.number() }),
  z.object({ op: z.literal("stop"), key: z.string(), stop: z.object({ reason: z.string() }) }),
  z.object({ op: z.literal("leave") }),
]);

export class FormerSupervisor {
  readonly started: string[] = [];
  readonly #agents = new Set<Socket>();
  readonly #running = new Map<string, { spool: SpoolWriter; stop(): void }>();
  readonly #server: Server = createServer((socket) => this.#welcome(socket));

  listen(directory: string): Promise<void> {
    mkdirSync(directory, { recursive: true });
    const socketPath = join(directory, "socket");
    writeFileSync(join(directory, "about.json"), JSON.stringify({ socketPath, pid: process.pid }));
    return new Promise((resolve) => this.#server.listen(socketPath, resolve));
  }

  close(): void {
    for (const agent of this.#agents) agent.destroy();
    this.#server.close();
  }

  #welcome(socket: Socket): void {
    this.#agents.add(socket);
    socket.on("error", () => undefined);
    socket.on("close", () => this.#agents.delete(socket));
    this.#say({ say: "hello", protocol: 1, software: "test", pid: process.pid }, [socket]);
    onMessages(socket, Message, (message) => {
      if (message.op === "start") return this.#start(message.spec);
      if (message.op === "leave" || message.op === "read") return;
      const running = this.#running.get(message.key);
      if (message.op === "stop") return running?.stop();
      if (!running) return this.#say({ say: "unknown", key: message.key }, [socket]);
      this.#say({ say: "output", key: message.key, end: running.spool.end }, [socket]);
    });
  }

  #start({ key, directory, argv, cwd }: z.infer<typeof Spec>): void {
    if (this.#running.has(key) || existsSync(join(directory, "exit.json"))) return;
    this.started.push(key);
    mkdirSync(directory, { recursive: true });
    const spool = new SpoolWriter(join(directory, "frames"));
    const child = spawn(argv[0]!, argv.slice(1), { cwd, stdio: ["ignore", "pipe", "ignore"] });
    let stopped: object | null = null;
    const stop = (): void => {
      stopped = { reason: "cancelled", message: "asked for" };
      child.kill();
    };
    this.#running.set(key, { spool, stop });
    child.stdout.on("data", (data: Buffer) => {
      spool.append("stdout", 1, data);
      this.#say({ say: "output", key, end: spool.end });
    });
    child.on("close", (code, signal) => {
      const times = { startedAtMs: 1, endedAtMs: 2, end: spool.end, droppedBytes: 0 };
      const record = { v: 1, code, signal, stopped, error: null, ...times };
      writeFileSync(join(directory, "exit.json"), JSON.stringify(record));
      this.#running.delete(key);
      this.#say({ say: "exit", key });
    });
  }

  #say(message: object, to: Iterable<Socket> = this.#agents): void {
    for (const agent of to) agent.write(`${JSON.stringify(message)}\n`);
  }
}
