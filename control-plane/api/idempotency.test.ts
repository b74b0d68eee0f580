import { describe, expect, test } from "vitest";
import { InsituError } from "../../shared/errors.ts";
import { testApi } from "./api.fixture.ts";
import { IDEMPOTENCY_TTL_MS, MemoryIdempotencyStore } from "./idempotency.ts";
import { ManualClock } from "./manual-clock.fixture.ts";

const start = (api: ReturnType<typeof testApi>, key: string, pipeline = "penguins") =>
  api.call("/v1/runs", { json: { pipeline }, headers: { "idempotency-key": key } });

describe("an Idempotency-Key", () => {
  test("gives a repeated request the first answer, and one effect", async () => {
    const api = testApi();
    const first = await start(api, "k1");
    const second = await start(api, "k1");
    expect(second.status).toBe(201);
    expect(second.headers.get("idempotent-replayed")).toBe("true");
    expect(await second.json()).toEqual(await first.json());
    expect(api.services.details.size).toBe(1);
  });

  test("with another payload is refused", async () => {
    const api = testApi();
    await start(api, "k1");
    const other = await start(api, "k1", "flights");
    expect(other.status).toBe(422);
    expect(await other.json()).toMatchObject({ code: "idempotency.reused" });
  });

  test("of a request that still runs asks the caller to come back", async () => {
    const api = testApi();
    let open = () => {};
    api.services.startGate = new Promise((resolve) => {
      open = resolve;
    });
    const first = start(api, "k1");
    const second = await start(api, "k1");
    expect(second.status).toBe(409);
    expect(await second.json()).toMatchObject({ code: "conflict", retryable: true });
    open();
    expect((await first).status).toBe(201);
  });

  test("of a request that was refused is free again", async () => {
    const api = testApi();
    expect((await start(api, "k1", "unplaceable")).status).toBe(422);
    expect((await start(api, "k1")).status).toBe(201);
  });

  test("gives each try of one start the same seed, also after one that failed half-way", async () => {
    const clock = new ManualClock();
    const api = testApi({ clock });
    api.services.startFails = new InsituError("unavailable", "no replica decides", { retryable: true });
    expect((await start(api, "k1")).status).toBe(503);
    api.services.startFails = undefined;
    clock.advance(5_000);
    expect((await start(api, "k1")).status).toBe(201);
    await start(api, "k2");
    const [first, again, other] = api.services.seeds;
    expect(first).toMatchObject({ key: expect.stringMatching(/^[0-9a-f]{64}$/) });
    expect(again).toEqual(first);
    expect(other?.key).not.toBe(first?.key);
  });

  test("is good for one path only", async () => {
    const api = testApi();
    await start(api, "k1");
    api.services.addRun("r");
    const cancelled = await api.call("/v1/runs/r/cancel", {
      method: "POST",
      headers: { "idempotency-key": "k1" },
    });
    expect(cancelled.status).toBe(200);
  });

  test.each(["", " ", "x".repeat(256)])("%j is refused", async (key) => {
    const response = await start(testApi(), key);
    expect(response.status).toBe(400);
  });
});

describe("the store in memory", () => {
  const answer = { status: 200, contentType: "application/json", body: "{}" };

  test("forgets an answer after a day", async () => {
    const clock = new ManualClock();
    const store = new MemoryIdempotencyStore(clock);
    await store.claim("a", "f");
    await store.finish("a", "f", answer);
    clock.advance(IDEMPOTENCY_TTL_MS - 1);
    expect((await store.claim("a", "f")).state).toBe("done");
    clock.advance(1);
    expect((await store.claim("a", "f")).state).toBe("new");
  });

  test("drops the oldest answer when it is full, and never a claim that runs", async () => {
    const store = new MemoryIdempotencyStore(new ManualClock(), 2);
    await store.claim("running", "f");
    await store.claim("old", "f");
    await store.finish("old", "f", answer);
    expect((await store.claim("new", "f")).state).toBe("new");
    expect((await store.claim("running", "f")).state).toBe("running");
    await expect(store.claim("more", "f")).rejects.toMatchObject({ code: "limit.exceeded" });
  });
});
