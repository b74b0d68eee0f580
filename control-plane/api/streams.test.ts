import { createParser, type EventSourceMessage } from "eventsource-parser";
import { pino } from "pino";
import { describe, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { logLine, testApi } from "./api.fixture.ts";
import { ManualClock } from "./manual-clock.fixture.ts";

const finished = { kind: "run.finished", atMs: 1, status: "succeeded", reason: "" } as const;
const skipped = (step: string) => ({ kind: "step.skipped", atMs: 1, step, message: "" }) as const;

/** Reads an event stream message by message; null at its end. */
function reader(response: Response) {
  const queue: (EventSourceMessage | { comment: string })[] = [];
  const parser = createParser({
    onEvent: (event) => queue.push(event),
    onComment: (comment) => queue.push({ comment: comment.trim() }),
  });
  const body = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  return {
    async next() {
      while (queue.length === 0) {
        const { done, value } = await body.read();
        if (done) return null;
        parser.feed(value);
      }
      return queue.shift();
    },
    leave: () => body.cancel(),
  };
}

async function all(response: Response) {
  const stream = reader(response);
  const messages = [];
  for (let message = await stream.next(); message !== null; message = await stream.next())
    messages.push(message);
  return messages;
}

describe("the events of a run", () => {
  test("come in order with their sequence, and an end after the last", async () => {
    const { call, services } = testApi();
    services.addRun("r");
    services.emit("r", skipped("a"));
    const stream = reader(await call("/v1/runs/r/events"));
    expect(await stream.next()).toMatchObject({
      id: "1",
      data: JSON.stringify({ v: 1, events: [skipped("a")] }),
    });
    services.emit("r", finished);
    expect(await stream.next()).toMatchObject({ id: "2" });
    expect(await stream.next()).toMatchObject({ event: "end" });
    expect(await stream.next()).toBeNull();
    expect(services.openStreams).toBe(0);
  });

  test("go on after the one that was seen last", async () => {
    const { call, services } = testApi();
    services.addRun("r");
    services.emit("r", skipped("a"));
    services.emit("r", finished);
    const messages = await all(await call("/v1/runs/r/events", { headers: { "last-event-id": "1" } }));
    expect(messages).toMatchObject([{ id: "2" }, { event: "end" }]);
  });

  test("of a run that ended, all seen, are just the end", async () => {
    const { call, services } = testApi();
    services.addRun("r");
    services.emit("r", finished);
    const messages = await all(await call("/v1/runs/r/events", { headers: { "last-event-id": "1" } }));
    expect(messages).toMatchObject([{ event: "end" }]);
  });

  test("are refused after an id that is no sequence", async () => {
    const { call, services } = testApi();
    services.addRun("r");
    expect((await call("/v1/runs/r/events", { headers: { "last-event-id": "latest" } })).status).toBe(400);
  });

  test("are kept alive by comments while nothing happens, and no timer stays behind", async () => {
    const clock = new ManualClock();
    const { call, services } = testApi({ clock });
    services.addRun("r");
    const stream = reader(await call("/v1/runs/r/events"));
    for (let beat = 0; beat < 3; beat++) {
      const next = stream.next();
      await waitUntil(() => clock.pending === 1);
      clock.advance(15_000);
      expect(await next).toEqual({ comment: "alive" });
    }
    services.emit("r", finished);
    expect(await stream.next()).toMatchObject({ id: "1" });
    expect(await stream.next()).toMatchObject({ event: "end" });
    expect(await stream.next()).toBeNull();
    expect(clock.pending).toBe(0);
  });

  test("let go of their source when the reader leaves", async () => {
    const { call, services } = testApi();
    services.addRun("r");
    services.emit("r", skipped("a"));
    const stream = reader(await call("/v1/runs/r/events"));
    await stream.next();
    await stream.leave();
    await waitUntil(() => services.openStreams === 0);
    expect(services.changes.waiting).toBe(0);
  });

  test("report no failure when the reader leaves while nothing happens", async () => {
    const complaints: string[] = [];
    const { call, services } = testApi({ log: pino({}, { write: (line) => void complaints.push(line) }) });
    services.addRun("r");
    const body = (await call("/v1/runs/r/events")).body!.getReader();
    await body.read();
    const next = body.read();
    await waitUntil(() => services.changes.waiting > 0);
    await body.cancel();
    expect(await next).toMatchObject({ done: true });
    await waitUntil(() => services.openStreams === 0);
    await systemClock.sleep(1);
    expect(complaints).toEqual([]);
  });

  test("are not opened by a HEAD request", async () => {
    const { call, services } = testApi();
    services.addRun("r");
    let opened = 0;
    const { follow } = services.queries;
    services.queries.follow = (...args) => {
      opened += 1;
      return follow(...args);
    };
    expect((await call("/v1/runs/r/events", { method: "HEAD" })).status).toBe(200);
    expect(opened).toBe(0);
  });

  test("stop without an end when the server stops, so that the reader comes back", async () => {
    const { call, services, stopping } = testApi();
    services.addRun("r");
    services.emit("r", skipped("a"));
    const stream = reader(await call("/v1/runs/r/events"));
    await stream.next();
    const rest = stream.next();
    stopping.abort();
    expect(await rest).toBeNull();
    await waitUntil(() => services.openStreams === 0);
  });
});

describe("the logs of a run", () => {
  const lines = async (response: Response) =>
    (await response.text())
      .split("\n")
      .filter((line) => line !== "")
      .map((line) => JSON.parse(line) as { seq: number });

  test("come as lines of JSON, those of one step when one is named", async () => {
    const { call, services } = testApi();
    services.addRun("r", { steps: [{ id: "merge" }] as never });
    for (let seq = 1; seq <= 5000; seq++)
      services.write("r", logLine(seq, "x".repeat(50), seq % 2 ? "a" : "merge"));
    const response = await call("/v1/runs/r/logs");
    expect(response.headers.get("content-type")).toBe("application/x-ndjson");
    expect((await lines(response)).map((line) => line.seq)).toEqual(
      Array.from({ length: 5000 }, (_, i) => i + 1),
    );
    expect(await lines(await call("/v1/runs/r/logs?step=merge"))).toHaveLength(2500);
    expect((await call("/v1/runs/r/logs?step=mrege")).status).toBe(404);
  });

  test("come while the run goes on, each as soon as it is there", async () => {
    const { call, services } = testApi();
    services.addRun("r");
    const response = await call("/v1/runs/r/logs?follow=true");
    const body = response.body!.pipeThrough(new TextDecoderStream()).getReader();
    for (let seq = 1; seq <= 3; seq++) {
      const next = body.read();
      services.write("r", logLine(seq));
      expect(JSON.parse((await next).value ?? "")).toMatchObject({ seq });
    }
    services.emit("r", finished);
    expect((await body.read()).done).toBe(true);
  });

  test("are taken from the store only as fast as they are read", async () => {
    const { call, services } = testApi();
    services.addRun("r");
    let taken = 0;
    services.logs.read = async function* () {
      for (; taken < 1_000_000; taken++) yield logLine(taken, "x".repeat(1000));
    };
    const body = (await call("/v1/runs/r/logs")).body!.getReader();
    await body.read();
    await body.read();
    expect(taken).toBeLessThan(300);
    await body.cancel();
  });

  test("that break off are cut, not ended", async () => {
    const { call, services } = testApi();
    services.addRun("r");
    services.write("r", logLine(1));
    services.write("r", logLine(2, "broken"));
    const response = await call("/v1/runs/r/logs");
    await expect(response.text()).rejects.toMatchObject({ code: "store.unavailable" });
  });

  test("that are followed are cut when the server stops, and their source is let go", async () => {
    const { call, services, stopping } = testApi();
    services.addRun("r");
    const text = (await call("/v1/runs/r/logs?follow=true")).text();
    await waitUntil(() => services.openStreams === 1);
    stopping.abort();
    await expect(text).rejects.toMatchObject({ code: "cancelled" });
    await waitUntil(() => services.openStreams === 0);
  });
});

/** Lets promises settle until something holds; gives up after many turns of the event loop. */
async function waitUntil(holds: () => boolean): Promise<void> {
  for (let turn = 0; turn < 10_000 && !holds(); turn++) await new Promise((resolve) => setImmediate(resolve));
  expect(holds()).toBe(true);
}
