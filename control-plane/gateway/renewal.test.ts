/** Renewing an identity, over the wire, with answers that are lost and keys that are old. */
import { X509Certificate } from "node:crypto";
import { status } from "@grpc/grpc-js";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { RenewResponse__Output } from "../../shared/wire/gen/insitu/agent/v1/RenewResponse.ts";
import { csrOf, type Keys, newKeys, openSession, startWorld, type World } from "./gateway.fixture.ts";

const HOUR_MS = 3_600_000;

let world: World;
beforeAll(async () => {
  world = await startWorld({ validForMs: (environment) => (environment === "biscoe" ? HOUR_MS : undefined) });
});
afterAll(async () => {
  await world?.stop();
});

interface Pem {
  keyPem: string;
  certificatePem: string;
}

async function renew(identity: Pem | undefined, keys: Keys): Promise<Pem> {
  const request = {
    csrDer: await csrOf(keys),
    version: { major: 1, minor: 0, software: "test", capabilities: [] },
  };
  const response = await new Promise<RenewResponse__Output>((resolve, reject) => {
    world.client(identity).Renew(request, (err, answer) => (err ? reject(err) : resolve(answer!)));
  });
  return { keyPem: keys.keyPem, certificatePem: response.certificatePem.toString() };
}

const opens = async (identity: Pem) => await openSession(world.client(identity));
const denied = { code: status.PERMISSION_DENIED };

test("a renewed certificate is for the same agent and a new key, and the older one ends when the new one is used", async () => {
  const former = await world.join("dream", "a1");
  const old = await opens(former);
  const next = await renew(former, await newKeys());
  const [before, after] = [former, next].map(({ certificatePem }) => new X509Certificate(certificatePem));
  expect(after!.subjectAltName).toBe(before!.subjectAltName);
  // Until it is used, both are good: the answer could have been lost.
  (await opens(former)).stream.end();
  expect((await old.inbox.end())?.code).toBe(status.ABORTED); // the newer session took its place
  const session = await opens(next);
  await expect.poll(() => world.registry.known("dream/a1")?.next).toBeNull();
  await expect(opens(former)).rejects.toMatchObject(denied);
  await expect(renew(former, await newKeys())).rejects.toMatchObject(denied);
  session.stream.end();
  (await opens(next)).stream.end();
});

test("an agent whose answer was lost asks again, and the last answer counts", async () => {
  const former = await world.join("dream", "a2");
  const lost = await renew(former, await newKeys());
  const keys = await newKeys();
  await renew(former, keys);
  const next = await renew(former, keys); // the same key, too
  await expect(opens(lost)).rejects.toMatchObject(denied);
  (await opens(next)).stream.end();
});

test("an agent that renews again before its new key was seen at work keeps the one that it has", async () => {
  const first = await world.join("dream", "a3");
  const second = await renew(first, await newKeys());
  const third = await renew(second, await newKeys());
  await expect(opens(first)).rejects.toMatchObject(denied);
  (await opens(second)).stream.end();
  (await opens(third)).stream.end();
});

test("nobody renews without a certificate, with one of a revoked agent, or for a key that is not new", async () => {
  await expect(renew(undefined, await newKeys())).rejects.toMatchObject({ code: status.UNAUTHENTICATED });
  const agent = await world.join("dream", "a4");
  await expect(renew(agent, agent)).rejects.toMatchObject({ code: status.INVALID_ARGUMENT });
  const keys = await newKeys();
  const next = await renew(agent, keys);
  await world.registry.revoke("dream/a4", { by: "ada", reason: "stolen" });
  for (const identity of [agent, next]) {
    await expect(renew(identity, await newKeys())).rejects.toMatchObject(denied);
    await expect(opens(identity)).rejects.toMatchObject(denied);
  }
  // Neither of its keys is taken again.
  await expect(world.enrolWith(await world.token(), "a4", keys)).rejects.toMatchObject(denied);
});

describe("an agent whose certificate has expired", () => {
  const recover = async (
    name: string,
    keys: Keys,
    changes: { environment?: string; csrDer?: Uint8Array } = {},
  ) => {
    const request = {
      environment: "dream",
      agentName: name,
      csrDer: await csrOf(keys),
      version: { major: 1, minor: 0, software: "test", capabilities: [] },
      ...changes,
    };
    const response = await new Promise<RenewResponse__Output>((resolve, reject) => {
      world.client().Recover(request, (err, answer) => (err ? reject(err) : resolve(answer!)));
    });
    return { keyPem: keys.keyPem, certificatePem: response.certificatePem.toString() };
  };
  const decide = async (name: string, approved: boolean) => {
    const request = (await world.joinRequests.list()).find((one) => one.name === name)!;
    expect(request.recovers).toBe(true);
    await world.joinRequests.decide({ ...request, approved, by: "ada" });
  };
  const waits = { code: status.FAILED_PRECONDITION, details: expect.stringMatching(/waits for approval/) };

  test("an agent whose certificate has expired comes back with its key, not before it is approved, and once for each approval, however late it asks again", async () => {
    const agent = await world.join("dream", "r1");
    await expect(recover("r1", agent)).rejects.toMatchObject(waits);
    await expect(recover("r1", agent)).rejects.toMatchObject(waits);
    await decide("r1", true);
    const back = await recover("r1", agent);
    expect(new X509Certificate(back.certificatePem).subjectAltName).toBe(
      new X509Certificate(agent.certificatePem).subjectAltName,
    );
    (await opens(back)).stream.end();
    await expect(recover("r1", agent)).rejects.toMatchObject(waits);
  });

  test("does not come back by an approval that it was given to join", async () => {
    const keys = await newKeys();
    const request = { environment: "dream", ttlMs: 60_000, uses: 1, approval: true, by: "test" };
    const { token } = await world.tokens.create(request);
    await expect(world.enrolWith(token, "r2", keys)).rejects.toMatchObject(waits);
    const waiting = (await world.joinRequests.list()).find(({ name }) => name === "r2");
    await world.joinRequests.decide({ ...waiting!, approved: true, by: "ada" });
    await world.enrolWith(token, "r2", keys);
    await expect(recover("r2", keys)).rejects.toMatchObject(waits);
    await decide("r2", false);
    await expect(recover("r2", keys)).rejects.toMatchObject(denied);
  });

  test("comes back with a renewed key that it never used, too", async () => {
    const agent = await world.join("dream", "r3");
    const keys = await newKeys();
    await renew(agent, keys);
    await expect(recover("r3", keys)).rejects.toMatchObject(waits);
    await decide("r3", true);
    (await opens(await recover("r3", keys))).stream.end();
    await expect(opens(agent)).rejects.toMatchObject(denied);
  });

  test("is told the same whether it is not known, has another key or was revoked, and nobody is asked", async () => {
    const agent = await world.join("dream", "r4");
    await world.join("dream", "r5");
    await world.registry.revoke("dream/r4", { by: "ada", reason: "stolen" });
    const unknown = { ...denied, details: "no agent of this name is enrolled with this key" };
    for (const [name, keys] of [
      ["nobody", agent],
      ["No.Name", agent],
      ["r4", agent],
      ["r5", await newKeys()],
    ] as const)
      await expect(recover(name, keys)).rejects.toMatchObject(unknown);
    await expect(recover("r5", agent, { environment: "biscoe" })).rejects.toMatchObject(unknown);
    await expect(recover("r5", agent, { csrDer: new Uint8Array([1]) })).rejects.toMatchObject({
      code: status.INVALID_ARGUMENT,
    });
    expect((await world.joinRequests.list()).map(({ name }) => name)).not.toContain("r5");
  });
});

test("a certificate is good for as long as its environment says", async () => {
  const lifeMs = ({ certificatePem }: Pem) => {
    const { validFrom, validTo } = new X509Certificate(certificatePem);
    return Date.parse(validTo) - Date.parse(validFrom);
  };
  const backdated = 5 * 60_000;
  const short = await world.join("biscoe", "a5");
  expect(lifeMs(short)).toBe(HOUR_MS + backdated);
  expect(lifeMs(await renew(short, await newKeys()))).toBe(HOUR_MS + backdated);
  expect(lifeMs(await world.join("dream", "a5"))).toBe(30 * 24 * HOUR_MS + backdated);
});

test("an agent that asks for ever new certificates is told to wait, and others are not", async () => {
  const [eager, calm] = [await world.join("dream", "eager"), await world.join("dream", "calm")];
  const asked = await Promise.allSettled(
    Array.from({ length: 12 }, async () => await renew(eager, await newKeys())),
  );
  const refused = asked.flatMap((one) => (one.status === "rejected" ? [one.reason] : []));
  expect(refused).toHaveLength(2);
  expect(refused[0]).toMatchObject({ code: status.RESOURCE_EXHAUSTED });
  await renew(calm, await newKeys());
});
