import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { get as httpGet, type IncomingMessage } from "node:http";
import { get as httpsGet } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { loadOrCreatePki } from "../access/pki.ts";
import { logLine, TOKEN, testApi } from "./api.fixture.ts";
import { type ApiServer, isLoopback, type ServeOptions, serveApi } from "./serve.ts";

const auth = { authorization: `Bearer ${TOKEN}` };
const running: ApiServer[] = [];

afterEach(async () => {
  for (const server of running.splice(0)) await server.close();
});

async function serve(options: Partial<ServeOptions> = {}) {
  const api = testApi();
  const server = serveApi(api.app, { host: "127.0.0.1", port: 0, clock: systemClock, ...options });
  running.push(server);
  await server.start(new AbortController().signal);
  return { ...api, server };
}

describe("the server over HTTP", () => {
  test("answers on loopback, to the names of loopback alone", async () => {
    const { server } = await serve();
    expect(server.url).toBe(`http://127.0.0.1:${server.port}`);
    expect((await fetch(`${server.url}/livez`)).status).toBe(200);
    const rebound = await new Promise<IncomingMessage>((resolve, reject) => {
      httpGet(`${server.url}/livez`, { headers: { host: "evil.example" } }, resolve).on("error", reject);
    });
    rebound.resume();
    expect(rebound.statusCode).toBe(421);
  });

  test("takes a body, and refuses one that is too large while it is still being sent", async () => {
    const { server } = await serve();
    const post = (body: string) => {
      const headers = { ...auth, "content-type": "application/json" };
      return fetch(`${server.url}/v1/runs`, { method: "POST", headers, body });
    };
    expect((await post('{"pipeline":"penguins"}')).status).toBe(201);
    expect((await post(JSON.stringify({ pipeline: "x".repeat(9_000_000) }))).status).toBe(413);
    expect((await post('{"pipeline":"penguins"}')).status).toBe(201);
  });

  test.runIf(process.platform === "linux")(
    "a client that falls silent is asked whether it is there",
    async () => {
      const { server } = await serve();
      const client = new AbortController();
      await fetch(`${server.url}/v1/runs/r/events`, { headers: auth, signal: client.signal });
      const own = `:${server.port.toString(16).toUpperCase().padStart(4, "0")}`;
      // proc(5): sl, local_address, rem_address, st (01: established), queues, and the timer that runs (02: keepalive).
      const timers = readFileSync("/proc/net/tcp", "utf8")
        .split("\n")
        .map((line) => line.trim().split(/\s+/))
        .filter(([, local, , state]) => local?.endsWith(own) && state === "01")
        .map(([, , , , , timer]) => timer?.slice(0, 2));
      expect(timers).toEqual(["02"]);
      client.abort();
    },
  );

  test("streams events as they happen, and lets go of the source when the client hangs up", async () => {
    const { server, services } = await serve();
    services.addRun("r");
    const client = new AbortController();
    const response = await fetch(`${server.url}/v1/runs/r/events`, { headers: auth, signal: client.signal });
    expect(response.headers.get("content-type")).toBe("text/event-stream");
    expect(services.openStreams).toBe(1);
    const body = response.body!.pipeThrough(new TextDecoderStream()).getReader();
    services.emit("r", { kind: "step.skipped", atMs: 1, step: "a", message: "" });
    let text = "";
    while (!text.includes("step.skipped")) text += (await body.read()).value;
    client.abort();
    await expect(body.read()).rejects.toThrow();
    await waitUntil(() => services.openStreams === 0);
  });

  test("sends the head of a log that has no line yet, and notices a client that leaves before the first", async () => {
    const { server, services } = await serve();
    services.addRun("r");
    const client = new AbortController();
    const response = await fetch(`${server.url}/v1/runs/r/logs?follow=true`, {
      headers: auth,
      signal: client.signal,
    });
    expect(response.status).toBe(200);
    await waitUntil(() => services.openStreams === 1);
    client.abort();
    await waitUntil(() => services.openStreams === 0);
  });

  test("reads a log no faster than a slow client takes it", async () => {
    const { server, services } = await serve();
    services.addRun("r");
    let taken = 0;
    services.logs.read = async function* () {
      for (; taken < 100_000; taken++) yield logLine(taken, "x".repeat(10_000));
    };
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      httpGet(`${server.url}/v1/runs/r/logs`, { headers: auth }, resolve).on("error", reject);
    });
    response.pause();
    let before = -1;
    // The socket's buffers fill, and then nothing moves: a gigabyte would have been taken otherwise.
    while (before !== taken) {
      before = taken;
      for (let turn = 0; turn < 2000; turn++) await new Promise((resolve) => setImmediate(resolve));
    }
    expect(taken).toBeLessThan(10_000);
    response.destroy();
  });

  test("cuts the connection of a log that breaks off", async () => {
    const { server, services } = await serve();
    services.addRun("r");
    services.write("r", logLine(1));
    services.write("r", logLine(2, "broken"));
    const response = await fetch(`${server.url}/v1/runs/r/logs`, { headers: auth });
    await expect(response.text()).rejects.toThrow(/terminated/);
  });
});

describe("the server over HTTPS", () => {
  test("answers whoever trusts its authority", async () => {
    const directory = await mkdtemp(join(tmpdir(), "insitu-api-"));
    try {
      const pki = await loadOrCreatePki({ directory, trustDomain: "insitu.test", clock: systemClock });
      const { chainPem, keyPem } = await pki.issueServerCertificate({ dns: [], ips: [] });
      const { server } = await serve({ tls: { cert: chainPem, key: keyPem }, host: "localhost" });
      expect(server.url).toBe(`https://localhost:${server.port}`);
      const status = (ca?: string) =>
        new Promise<number | undefined>((resolve, reject) => {
          httpsGet(
            `${server.url}/livez`,
            { ...(ca === undefined ? {} : { ca }), agent: false },
            (response) => {
              response.resume();
              resolve(response.statusCode);
            },
          ).on("error", reject);
        });
      expect(await status(pki.caPem)).toBe(200);
      await expect(status()).rejects.toThrow(/certificate/);
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  });
});

describe("where the server listens", () => {
  test.each(["0.0.0.0", "::", "192.168.1.7", "insitu.example", "127.0.0.1.example", "::ffff:1.2.3.4"])(
    "%s without a certificate is refused before anything is opened",
    (host) => {
      const { app } = testApi();
      expect(() => serveApi(app, { host, port: 0, clock: systemClock })).toThrow(
        /no plaintext mode off loopback/,
      );
    },
  );

  test.each(["127.0.0.1", "127.8.9.1", "::1", "localhost"])("%s is loopback", (host) => {
    expect(isLoopback(host)).toBe(true);
  });

  test("a port that is taken is named in the error", async () => {
    const { server } = await serve();
    const { app } = testApi();
    const second = serveApi(app, { host: "127.0.0.1", port: server.port, clock: systemClock });
    await expect(second.start(new AbortController().signal)).rejects.toMatchObject({
      code: "unavailable",
      message: expect.stringContaining(String(server.port)),
    });
    await second.close();
  });
});

describe("the server's end", () => {
  test("lets a request that runs finish, and takes no new one", async () => {
    const { server, services } = await serve();
    const { url } = server;
    let open = () => {};
    services.startGate = new Promise((resolve) => {
      open = resolve;
    });
    const headers = { ...auth, "content-type": "application/json" };
    const request = fetch(`${url}/v1/runs`, { method: "POST", headers, body: '{"pipeline":"p"}' });
    const arrived = services.runs.start;
    await new Promise<void>((resolve) => {
      services.runs.start = (...args) => {
        resolve();
        return arrived(...args);
      };
    });
    const drained = server.drain(60_000);
    await expect(fetch(`${url}/livez`)).rejects.toThrow();
    open();
    expect((await request).status).toBe(201);
    await drained;
  });

  test("ends its streams once it is told to stop", async () => {
    const { server, services, stopping } = await serve();
    services.addRun("r");
    const response = await fetch(`${server.url}/v1/runs/r/events`, { headers: auth });
    stopping.abort();
    await server.drain(60_000);
    expect(await response.text()).not.toContain("event: end");
    expect(services.openStreams).toBe(0);
  });

  test("cuts what is left at the deadline", async () => {
    const { server, services } = await serve();
    services.addRun("r");
    const response = await fetch(`${server.url}/v1/runs/r/events`, { headers: auth });
    await server.drain(1);
    await expect(response.text()).rejects.toThrow();
  });

  test("may come early, and twice", async () => {
    const { app } = testApi();
    const server = serveApi(app, { host: "127.0.0.1", port: 0, clock: systemClock });
    await server.close();
    await server.drain(1);
    await server.close();
    expect(() => server.port).toThrow(/not listening/);
    await expect(server.start(new AbortController().signal)).rejects.toMatchObject({ code: "unavailable" });
  });
});

/** Lets the event loop turn until something holds; gives up after many turns. */
async function waitUntil(holds: () => boolean): Promise<void> {
  for (let turn = 0; turn < 100_000 && !holds(); turn++)
    await new Promise((resolve) => setImmediate(resolve));
  expect(holds()).toBe(true);
}
