import { spawn } from "node:child_process";
import { once } from "node:events";
import { rmSync } from "node:fs";
import { mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect, type NatsConnection } from "nats";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { findNatsServer } from "../../scripts/find-nats-server.mjs";
import { systemClock } from "../../shared/system.ts";
import { keepNatsServerRunning, type NatsServerOptions, startNatsServer } from "./nats-server.ts";

const log = { debug() {}, info() {}, warn() {} };
let binary = "";
let directory = "";

beforeAll(async () => {
  binary = (await findNatsServer()).path;
  directory = await mkdtemp(join(tmpdir(), "insitu-nats-server-"));
});
afterAll(() => rm(directory, { recursive: true, force: true }));

function options(name: string, changes: Partial<NatsServerOptions> = {}): NatsServerOptions {
  return {
    binary,
    directory: join(directory, name),
    host: "127.0.0.1",
    port: 0,
    users: [{ user: "centre", password: "c" }],
    log,
    clock: systemClock,
    ...changes,
  };
}

function login(url: string, user: string, pass: string): Promise<NatsConnection> {
  return connect({ servers: [url.replace(/^.*:\/\//, "")], user, pass, reconnect: false });
}

describe("nats-server as a child", () => {
  test("answers with JetStream on a free port, with a configuration that its owner alone can read", async () => {
    await using server = await startNatsServer(options("plain"));
    const connection = await login(server.url, "centre", "c");
    expect((await (await connection.jetstreamManager()).getAccountInfo()).streams).toBe(0);
    expect(connection.info?.max_payload).toBe(8 * 1024 * 1024);
    await connection.close();
    expect((await stat(join(directory, "plain", "nats.conf.json"))).mode & 0o777).toBe(0o600);
  });

  test("keeps port and streams over a restart, and tells whether an exit was asked for", async () => {
    await using server = await startNatsServer(options("restart"));
    const { port } = server;
    const before = await login(server.url, "centre", "c");
    await (await before.jetstreamManager()).streams.add({ name: "KEPT", subjects: ["kept"] });
    await before.jetstream().publish("kept", "1");
    await before.close();

    const first = server.exited;
    await server.restart();
    expect(await first).toMatchObject({ expected: true });
    expect(server.port).toBe(port);
    const after = await login(server.url, "centre", "c");
    expect((await (await after.jetstreamManager()).streams.info("KEPT")).state.messages).toBe(1);
    await after.close();

    process.kill(server.pid, "SIGKILL");
    expect(await server.exited).toEqual({ code: null, signal: "SIGKILL", expected: false });
  });

  test("lets a user publish and subscribe only what it was given, and nothing when given an empty list", async () => {
    await using server = await startNatsServer(
      options("users", {
        users: [
          { user: "centre", password: "c" },
          { user: "site", password: "s", publish: ["up.>"], subscribe: ["down.site"] },
          { user: "mute", password: "m", publish: [], subscribe: [] },
        ],
      }),
    );
    expect(await firstError(await login(server.url, "site", "s"), (c) => c.publish("other"))).toMatch(
      /Permissions/i,
    );
    expect(
      await firstError(await login(server.url, "site", "s"), (c) => void c.subscribe("down.other")),
    ).toMatch(/Permissions/i);
    expect(await firstError(await login(server.url, "mute", "m"), (c) => c.publish("up.x"))).toMatch(
      /Permissions/i,
    );

    const centre = await login(server.url, "centre", "c");
    const heard = centre.subscribe("up.>", { max: 1 });
    await centre.flush();
    const site = await login(server.url, "site", "s");
    site.publish("up.news", "hello");
    for await (const message of heard) expect(message.string()).toBe("hello");
    await Promise.all([centre.close(), site.close()]);
  });

  test("takes a change of users without disturbing the others, and cuts those who are gone", async () => {
    const site = { user: "site", password: "s" };
    const centre = { user: "centre", password: "c" };
    await using server = await startNatsServer(options("change"));
    await expect(login(server.url, "site", "s")).rejects.toThrow(/authorization/i);

    const staying = await login(server.url, "centre", "c");
    await server.setUsers([centre, site]);
    const going = await login(server.url, "site", "s");
    await server.setUsers([centre]);
    await going.closed();
    await expect(login(server.url, "site", "s")).rejects.toThrow(/authorization/i);
    await staying.flush();
    await staying.close();

    await server.restart();
    await expect(login(server.url, "site", "s")).rejects.toThrow(/authorization/i);
  });

  test("is brought back when it ends unasked, and left alone once it is stopped", async () => {
    const stopping = new AbortController();
    const server = await startNatsServer(options("kept"));
    const keeping = keepNatsServerRunning(server, { clock: systemClock, log, signal: stopping.signal });
    const { url, pid } = server;
    const connection = await connect({
      servers: [url.replace("nats://", "")],
      user: "centre",
      pass: "c",
      maxReconnectAttempts: -1,
      reconnectTimeWait: 50,
    });
    process.kill(pid, "SIGKILL");
    for await (const status of connection.status()) if (status.type === "reconnect") break;
    expect(server.pid).not.toBe(pid);
    await connection.close();
    await server.stop();
    await keeping;
    expect(await server.exited).toMatchObject({ expected: true });
  });

  test("is started again also after a start that failed half-way, as on a full disk", async () => {
    const name = "half-way";
    const home = join(directory, name);
    const wrapper = join(directory, "nats-server-half-way");
    // The configuration is written again once the server listens; a directory in its place makes that fail.
    await writeFile(
      wrapper,
      `#!/bin/sh\nif rm "${home}/once"; then mkdir "${home}/nats.conf.json.new"; fi 2>/dev/null\nexec ${binary} "$@"\n`,
      { mode: 0o755 },
    );
    const failures: string[] = [];
    const noting = {
      ...log,
      warn(_: object, text: string) {
        if (text !== "nats-server did not start again") return;
        failures.push(text);
        rmSync(join(home, "nats.conf.json.new"), { recursive: true });
      },
    };
    const server = await startNatsServer(options(name, { binary: wrapper }));
    const stopping = new AbortController();
    const keeping = keepNatsServerRunning(server, {
      clock: systemClock,
      log: noting,
      signal: stopping.signal,
    });
    const connection = await connect({
      servers: [server.url.replace("nats://", "")],
      user: "centre",
      pass: "c",
      maxReconnectAttempts: -1,
      reconnectTimeWait: 50,
    });
    await writeFile(join(home, "once"), "");
    const killed = server.pid;
    await server.recycle();
    while (failures.length === 0 || server.pid === killed || !(await answers(connection)))
      await systemClock.sleep(20);
    expect(failures).toHaveLength(1);
    await connection.close();
    stopping.abort();
    await keeping;
    await server.stop();
  });

  test("a server left behind by a killed control plane is stopped before the next one starts", async () => {
    const { url } = await leaveBehind("left-over");
    await (await login(url, "centre", "c")).close();
    await using server = await startNatsServer(options("left-over"));
    await expect(login(url, "centre", "c")).rejects.toMatchObject({ code: "CONNECTION_REFUSED" });
    expect(await readFile(join(directory, "left-over", "nats.pid"), "utf8")).toContain(String(server.pid));
  });

  test("a pid file that names somebody else's process harms nobody", async () => {
    await using first = await startNatsServer(options("innocent"));
    await first.stop();
    const bystander = spawn(process.execPath, ["-e", "process.stdout.write('up'); process.stdin.resume()"]);
    await once(bystander.stdout, "data");
    await writeFile(join(directory, "innocent", "nats.pid"), String(bystander.pid));
    await using second = await startNatsServer(options("innocent"));
    expect(second.pid).not.toBe(bystander.pid);
    expect(bystander.exitCode).toBeNull();
    bystander.kill();
    await once(bystander, "exit");
  });

  test("refuses a directory that another living process serves from", async () => {
    const name = "taken";
    const other = spawn(
      process.execPath,
      ["-e", parentOfNats(binary, join(directory, name)), join(directory, name)],
      {
        stdio: ["pipe", "pipe", "inherit"],
      },
    );
    await startNatsServer(options(name)).then((server) => server.stop()); // writes the configuration
    other.stdin.write("go\n");
    await once(other.stdout, "data");
    await expect(startNatsServer(options(name))).rejects.toMatchObject({ code: "unavailable" });
    other.stdin.end();
    await once(other, "exit");
  });

  test("says with the server's own words why it did not start", async () => {
    await using server = await startNatsServer(options("holder"));
    await expect(startNatsServer(options("second", { port: server.port }))).rejects.toMatchObject({
      code: "store.unavailable",
      message: expect.stringMatching(/address already in use/),
    });
    await expect(
      startNatsServer(options("no-binary", { binary: "/nonexistent/nats-server" })),
    ).rejects.toMatchObject({
      code: "store.unavailable",
      message: expect.stringMatching(/ENOENT/),
    });
  });
});

async function answers(connection: NatsConnection): Promise<boolean> {
  return connection.flush().then(
    () => true,
    () => false,
  );
}

async function firstError(
  connection: NatsConnection,
  act: (connection: NatsConnection) => void,
): Promise<string> {
  act(connection);
  try {
    for await (const status of connection.status()) {
      if (status.type === "error")
        return `${status.data} ${status.permissionContext?.operation ?? ""} Permissions`;
    }
    return "no error";
  } finally {
    await connection.close();
  }
}

/** Runs nats-server on our configuration under a shell that ends at once, as a killed control plane would leave it. */
async function leaveBehind(name: string): Promise<{ url: string }> {
  const config = join(directory, name);
  await startNatsServer(options(name)).then((server) => server.stop());
  const shell = spawn("sh", ["-c", `"${binary}" -c "${join(config, "nats.conf.json")}" 2>&1 &`], {
    stdio: ["ignore", "pipe", "ignore"],
  });
  let text = "";
  for await (const chunk of shell.stdout) {
    text += chunk;
    if (text.includes("Server is ready")) break;
  }
  return { url: `nats://127.0.0.1:${/client connections on .*:(\d+)/.exec(text)?.[1]}` };
}

function parentOfNats(server: string, path: string): string {
  return `
    const { spawn } = require("node:child_process");
    process.stdin.once("data", () => {
      const child = spawn(${JSON.stringify(server)}, ["-c", ${JSON.stringify(join(path, "nats.conf.json"))}], { stdio: ["ignore", "ignore", "pipe"] });
      child.stderr.on("data", (d) => { if (String(d).includes("Server is ready")) console.log("ready"); });
      process.stdin.on("end", () => { child.kill(); child.on("exit", () => process.exit()); });
    });`;
}
