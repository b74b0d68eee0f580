/** The agent's own way to join, against a real gateway. */
import { generateKeyPairSync } from "node:crypto";
import { afterAll, beforeAll, expect, test } from "vitest";
import { openNetwork } from "../../agent/agent.fixture.ts";
import { enrol } from "../../agent/enrolment/enrol.ts";
import { openSession, startWorld, type World } from "../../control-plane/gateway/gateway.fixture.ts";
import { systemClock } from "../../shared/system.ts";
import { encodeJoinToken } from "../../shared/wire/join-token.ts";

const anotherKey = () =>
  Buffer.from(
    generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey.export({ type: "pkcs8", format: "pem" }),
  );
const keyPem = anotherKey();
let world: World;
beforeAll(async () => {
  world = await startWorld();
});
afterAll(async () => {
  await world?.stop();
});

const line = async (changes: { caPin?: string; secret?: string } = {}) =>
  encodeJoinToken({
    environment: "dream",
    gateway: `localhost:${world.gateway.port}`,
    caPin: world.pki.caPin(),
    secret: await world.token(),
    ...changes,
  });

test("an agent with a join token gets an identity that opens a session", async () => {
  const identity = await enrol({
    joinToken: await line(),
    name: "a1",
    keyPem,
    clock: systemClock,
    network: openNetwork,
  });
  expect(identity).toMatchObject({ environment: "dream", name: "a1", trustDomain: "insitu.test" });
  const { welcome, stream } = await openSession(
    world.client({ keyPem: identity.keyPem.toString(), certificatePem: identity.certificatePem.toString() }),
  );
  expect(welcome.offerPublicKeyPem.equals(identity.offerPublicKeyPem)).toBe(true);
  stream.end();
});

test("an agent whose answer was lost comes again with the same key, and spends no second use", async () => {
  const secret = await world.token();
  const again = {
    joinToken: await line({ secret }),
    name: "a4",
    keyPem: anotherKey(),
    clock: systemClock,
    network: openNetwork,
  };
  await enrol(again);
  const identity = await enrol(again);
  expect((await world.tokens.inspect(secret)).redemptions).toHaveLength(1);
  const { certificatePem } = identity;
  const { stream } = await openSession(
    world.client({ keyPem: again.keyPem.toString(), certificatePem: certificatePem.toString() }),
  );
  stream.end();
  await expect(enrol({ ...again, keyPem: anotherKey() })).rejects.toThrow();
});

test("an agent gives its secret to no gateway but the one that the token pins", async () => {
  const secret = await world.token();
  const joinToken = await line({ caPin: `sha256:${"0".repeat(64)}`, secret });
  await expect(
    enrol({ joinToken, name: "a2", keyPem, clock: systemClock, network: openNetwork }),
  ).rejects.toMatchObject({
    code: "auth.denied",
  });
  expect((await world.tokens.inspect(secret)).redemptions).toEqual([]);
});

test("an agent with a bad token is told what to do", async () => {
  const joinToken = await line({ secret: "x".repeat(43) });
  await expect(
    enrol({ joinToken, name: "a3", keyPem, clock: systemClock, network: openNetwork }),
  ).rejects.toMatchObject({
    code: "token.invalid",
    message: expect.stringMatching(/insitu join-token create/),
  });
});
