/** Against a real nats-server: what is stored, and what a second replica makes of it. */
import { connect, type NatsConnection } from "nats";
import { pino } from "pino";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { ManualClock } from "../api/manual-clock.fixture.ts";
import { openKv } from "../store/kv.ts";
import { createFirstAdmin, FIRST_ADMIN_LINK_MS, FirstAdminRecord } from "./first-admin.ts";
import { principalOf } from "./people.ts";
import {
  createSessions,
  SEEN_STEP_MS,
  SESSION_IDLE_MAX_MS,
  SESSION_MAX_MS,
  SessionRecord,
} from "./sessions.ts";

let nats: TestNats;
let connection: NatsConnection;
let clock: ManualClock;

beforeAll(async () => {
  nats = await startTestNats();
  connection = await connect({ servers: nats.url, user: nats.user, pass: nats.password });
});
beforeEach(() => {
  clock = new ManualClock();
});
afterAll(async () => {
  await connection?.close();
  await nats?.stop();
});

const ADA = { issuer: "https://id.example.org", subject: "ada", display: "ada", groups: ["ops"] };
const OPS = { group: "ops", grant: { role: "admin", pipelines: null } } as const;

async function replica(trusted = ADA.issuer, rules: readonly (typeof OPS)[] = [OPS]) {
  const kv = await openKv(connection, { clock: systemClock, bucket: "sessions", schema: SessionRecord });
  const sessions = createSessions({
    kv,
    clock,
    log: pino({ level: "silent" }),
    principalOf: (person) => (person.issuer === trusted ? principalOf(person, rules) : null),
  });
  return { kv, sessions };
}

test("a session opened at one replica is good at another, and ended at one is ended at both", async () => {
  const [one, other] = [await replica(), await replica()];
  const { secret } = await one.sessions.open("cookie", ADA);
  expect(await other.sessions.authenticate("cookie", secret)).toMatchObject({ name: "oidc:ada" });
  expect(JSON.stringify(await one.kv.list())).not.toContain(secret);
  await other.sessions.close("cookie", secret);
  expect(await one.sessions.authenticate("cookie", secret)).toBeNull();
  await one.sessions.close("cookie", secret);
});

test("use keeps a browser's session for twelve hours; an hour without ends it", async () => {
  const { sessions } = await replica();
  const used = await sessions.open("cookie", ADA);
  const left = await sessions.open("cookie", ADA);
  const program = await sessions.open("bearer", ADA);
  clock.advance(SESSION_IDLE_MAX_MS - 1);
  expect(await sessions.authenticate("cookie", used.secret)).not.toBeNull();
  clock.advance(1);
  expect(await sessions.authenticate("cookie", left.secret)).toBeNull();
  expect(await sessions.authenticate("bearer", program.secret)).not.toBeNull();
  while (used.expiresAtMs - clock.wallMs() > SESSION_IDLE_MAX_MS) {
    clock.advance(SESSION_IDLE_MAX_MS - SEEN_STEP_MS);
    expect(await sessions.authenticate("cookie", used.secret), String(clock.wallMs())).not.toBeNull();
  }
  clock.advance(used.expiresAtMs - clock.wallMs() - 1);
  expect(await sessions.authenticate("bearer", program.secret)).not.toBeNull();
  clock.advance(1);
  expect(await sessions.authenticate("cookie", used.secret)).toBeNull();
  expect(await sessions.authenticate("bearer", program.secret)).toBeNull();
  expect(used.expiresAtMs - 1_000_000).toBe(SESSION_MAX_MS);
});

test("a secret opens nothing in the other's place, nor when it is not quite right", async () => {
  const { sessions } = await replica();
  const { secret } = await sessions.open("cookie", ADA);
  const { secret: token } = await sessions.open("bearer", ADA);
  for (const wrong of [token, token.slice(5), "", `${secret}x`, secret.slice(1), "../x", `${secret}\n`])
    expect(await sessions.authenticate("cookie", wrong), wrong).toBeNull();
  for (const wrong of [secret, `inss_${secret}`, token.slice(5), `INSS_${token.slice(5)}`])
    expect(await sessions.authenticate("bearer", wrong), wrong).toBeNull();
});

test("roles follow the configuration of now, and a provider that is trusted no more takes its people along", async () => {
  const { sessions } = await replica();
  const { secret } = await sessions.open("cookie", ADA);
  const without = await replica(ADA.issuer, []);
  expect(await without.sessions.authenticate("cookie", secret)).toMatchObject({
    grants: [],
    groups: ["ops"],
  });
  const elsewhere = await replica("https://other.example.org");
  expect(await elsewhere.sessions.authenticate("cookie", secret)).toBeNull();
});

test("an end that comes while use is being noted stays an end", async () => {
  const { sessions, kv } = await replica();
  const before = (await kv.list()).length;
  const { secret } = await sessions.open("cookie", ADA);
  clock.advance(SESSION_IDLE_MAX_MS - 1);
  await Promise.all([sessions.authenticate("cookie", secret), sessions.close("cookie", secret)]);
  expect(await sessions.authenticate("cookie", secret)).toBeNull();
  expect(await kv.list()).toHaveLength(before);
});

test("of many who open the link for the first administrator one is let in, within the hour", async () => {
  const kv = await openKv(connection, {
    clock: systemClock,
    bucket: "first-admin",
    schema: FirstAdminRecord,
  });
  const [one, other] = [createFirstAdmin({ kv, clock }), createFirstAdmin({ kv, clock })];
  expect(await one.offer({ firstStart: false, hasAdmin: false })).toBeNull();
  expect(await one.offer({ firstStart: true, hasAdmin: true })).toBeNull();
  const late = (await one.offer({ firstStart: true, hasAdmin: false }))!;
  clock.advance(FIRST_ADMIN_LINK_MS);
  await expect(one.redeem(late)).rejects.toMatchObject({ code: "auth.missing" });
  // Nobody used it: the next start makes another, and the one before is void.
  const secret = (await other.offer({ firstStart: false, hasAdmin: false }))!;
  await expect(one.redeem(late)).rejects.toMatchObject({ code: "auth.missing" });
  await expect(one.redeem(`${secret}x`)).rejects.toMatchObject({ code: "auth.missing" });
  expect(JSON.stringify(await kv.list())).not.toContain(secret);
  const tries = await Promise.allSettled([one, other, one, other].map((admin) => admin.redeem(secret)));
  expect(tries.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
  expect(await one.offer({ firstStart: true, hasAdmin: false })).toBeNull();
});
