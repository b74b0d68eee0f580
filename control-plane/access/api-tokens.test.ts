/** Against a real nats-server: what is stored, and what a second replica makes of it. */
import { connect, type NatsConnection } from "nats";
import { pino } from "pino";
import { afterAll, beforeAll, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { ManualClock } from "../api/manual-clock.fixture.ts";
import { openKv } from "../store/kv.ts";
import { ApiTokenRecord, createApiTokens } from "./api-tokens.ts";

const HOUR_MS = 3_600_000;
let nats: TestNats;
let connection: NatsConnection;

beforeAll(async () => {
  nats = await startTestNats();
  connection = await connect({ servers: nats.url, user: nats.user, pass: nats.password });
});
afterAll(async () => {
  await connection?.close();
  await nats?.stop();
});

async function replica(clock: ManualClock) {
  const kv = await openKv(connection, { clock: systemClock, bucket: "api-tokens", schema: ApiTokenRecord });
  return { kv, tokens: createApiTokens({ kv, clock, log: pino({ level: "silent" }) }) };
}

const request = (name: string) => ({
  name,
  role: "runner" as const,
  pipelines: ["nightly"],
  groups: ["lab"],
  ttlMs: HOUR_MS,
  by: "ada",
});

test("a token made at one replica opens another, with its role and nothing more; the store does not hold it", async () => {
  const clock = new ManualClock();
  const [one, other] = [await replica(clock), await replica(clock)];
  const { token } = await one.tokens.create(request("ci"));
  expect(await other.tokens.authenticate(token)).toEqual({
    name: "ci",
    grants: [{ role: "runner", pipelines: ["nightly"] }],
    groups: ["lab"],
    madeBy: "ada",
  });
  const secret = token.slice("ins_ci_".length);
  expect(secret).toHaveLength(43);
  expect(JSON.stringify(await one.kv.list())).not.toContain(secret);
  expect(JSON.stringify(await one.tokens.list())).not.toMatch(/sha256/);
});

test("a token that is not quite right opens nothing", async () => {
  const { tokens } = await replica(new ManualClock());
  const { token } = await tokens.create(request("exact"));
  await tokens.create(request("other"));
  const secret = token.slice("ins_exact_".length);
  const wrong = [
    "",
    secret,
    `${token}x`,
    token.slice(0, -1),
    `ins_other_${secret}`,
    `ins_nobody_${secret}`,
    `ins_-_${secret}`,
    `ins_exact_${"A".repeat(43)}`,
    `ins_exact.>_${secret}`,
  ];
  for (const one of wrong) expect(await tokens.authenticate(one), one).toBeNull();
});

test("a token ends at its hour", async () => {
  const clock = new ManualClock();
  const { tokens } = await replica(clock);
  const { token } = await tokens.create(request("short"));
  clock.advance(HOUR_MS - 1);
  expect(await tokens.authenticate(token)).not.toBeNull();
  clock.advance(1);
  expect(await tokens.authenticate(token)).toBeNull();
});

test("a token that one replica revokes is refused by another one from then on, and its name stays taken", async () => {
  const clock = new ManualClock();
  const [one, other] = [await replica(clock), await replica(clock)];
  const { token } = await one.tokens.create(request("gone"));
  expect(await other.tokens.authenticate(token)).not.toBeNull();
  const { revokedAtMs } = await one.tokens.revoke("gone", "ada");
  expect(await other.tokens.authenticate(token)).toBeNull();
  clock.advance(5);
  expect((await other.tokens.revoke("gone", "eve")).revokedAtMs).toBe(revokedAtMs);
  await expect(other.tokens.create(request("gone"))).rejects.toMatchObject({ code: "conflict" });
});

test("the last use is kept to the hour", async () => {
  const clock = new ManualClock();
  const { tokens, kv } = await replica(clock);
  const { token } = await tokens.create({ ...request("used"), ttlMs: 10 * HOUR_MS });
  const used = async () => (await kv.get("used"))?.value.lastUsedAtMs;
  expect(await used()).toBeNull();
  await tokens.authenticate(token);
  const firstMs = clock.wallMs();
  clock.advance(HOUR_MS - 1);
  await tokens.authenticate(token);
  expect(await used()).toBe(firstMs);
  clock.advance(1);
  await tokens.authenticate(token);
  expect(await used()).toBe(firstMs + HOUR_MS);
});

test("nobody takes the name of the server's own token, or revokes what is not there", async () => {
  const { tokens } = await replica(new ManualClock());
  await expect(tokens.create(request("operator"))).rejects.toMatchObject({ code: "request.invalid" });
  for (const name of ["no-such", "a.>", ""])
    await expect(tokens.revoke(name, "ada")).rejects.toMatchObject({ code: "not-found" });
});
