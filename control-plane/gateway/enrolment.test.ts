/** Joining, over the wire, with honest and dishonest tokens. */
import { createHash, X509Certificate } from "node:crypto";
import { connect as tlsConnect } from "node:tls";
import { status } from "@grpc/grpc-js";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { InsituError } from "../../shared/errors.ts";
import { ERROR_CODE_METADATA } from "../../shared/wire/grpc.ts";
import { enrol } from "../access/enrolment.ts";
import { TOKEN_REFUSED } from "../access/join-tokens.ts";
import { revokeAgent } from "../access/revocation.ts";
import { csrOf, newKeys, openSession, startWorld, type World } from "./gateway.fixture.ts";

let world: World;
beforeAll(async () => {
  world = await startWorld();
});
afterAll(async () => {
  await world?.stop();
});

const lastFault = () => world.logLines.findLast((line) => line.msg === "enrolment refused")?.fault;
const refusedToken = { code: status.PERMISSION_DENIED, details: TOKEN_REFUSED };

describe("joining", () => {
  test("gives an identity for the environment of the token, and all that a first session needs", async () => {
    const agent = await world.join("dream", "a1");
    expect(agent.answer.environment).toBe("dream");
    expect(new X509Certificate(agent.certificatePem).subjectAltName).toBe(
      "URI:spiffe://insitu.test/env/dream/agent/a1",
    );
    expect(agent.answer.caPem.toString()).toBe(world.pki.caPem);
    expect(agent.answer.offerPublicKeyPem.toString()).toBe(world.gatewayOptions.offerPublicKeyPem);
    const { welcome, stream } = await openSession(world.client(agent));
    expect(welcome.nats).toMatchObject({ user: "dream", consumer: "env-dream", inboxPrefix: "_INBOX.dream" });
    expect(welcome).toMatchObject({ heartbeatMs: 200, leaseTtlMs: 3_000, version: { major: 1 } });
    stream.end();
  });

  test("the server shows the root that the token pins", async () => {
    const socket = tlsConnect({
      host: "127.0.0.1",
      port: world.gateway.port,
      rejectUnauthorized: false,
      ALPNProtocols: ["h2"],
    });
    await new Promise((resolve, reject) => socket.once("secureConnect", resolve).once("error", reject));
    const root = new X509Certificate(socket.getPeerCertificate(true).issuerCertificate.raw);
    socket.destroy();
    const spki = root.publicKey.export({ type: "spki", format: "der" });
    expect(`sha256:${createHash("sha256").update(spki).digest("hex")}`).toBe(world.pki.caPin());
  });

  test("another major version is refused, and told which side to upgrade", async () => {
    const token = await world.token();
    const newer = world.enrolWith(token, "future", await newKeys(), { major: 2 });
    await expect(newer).rejects.toMatchObject({
      code: status.FAILED_PRECONDITION,
      details: expect.stringMatching(/upgrade the server/),
    });
    const older = world.enrolWith(token, "past", await newKeys(), { major: 0 });
    await expect(older).rejects.toMatchObject({ details: expect.stringMatching(/upgrade the agent/) });
    await world.enrolWith(token, "present", await newKeys());
  });
});

describe("a join token", () => {
  test("that is unknown, malformed, expired or used is refused in the same words, and told apart in our log", async () => {
    await expect(world.enrolWith("x".repeat(43), "b1", await newKeys())).rejects.toMatchObject(refusedToken);
    expect(lastFault()).toBe("unknown");
    await expect(world.enrolWith("../agents", "b1", await newKeys())).rejects.toMatchObject(refusedToken);
    expect(lastFault()).toBe("unknown");

    const brief = await world.token("dream", 1, 1);
    await expect(world.enrolWith(brief, "b1", await newKeys())).rejects.toMatchObject(refusedToken);
    expect(lastFault()).toBe("expired");

    const once = await world.token();
    await world.enrolWith(once, "b2", await newKeys());
    await expect(world.enrolWith(once, "b3", await newKeys())).rejects.toMatchObject(refusedToken);
    expect(lastFault()).toBe("used");
    expect(world.registry.known("dream/b3")).toBeUndefined();
  });

  test("that is revoked lets nobody in, also not who came with it before; what joined stays", async () => {
    const made = await world.tokens.create({ environment: "dream", ttlMs: 60_000, uses: 3, by: "ada" });
    const keys = await newKeys();
    const answer = await world.enrolWith(made.token, "early", keys);
    expect(await world.tokens.get(made.id)).toMatchObject({
      state: "valid",
      environment: "dream",
      usesLeft: 2,
      createdBy: "ada",
      revoked: null,
      usedBy: [{ agent: "dream/early", fingerprint: expect.stringMatching(/^sha256:[0-9a-f]{64}$/) }],
    });
    expect(JSON.stringify(await world.tokens.list())).not.toContain(made.token);

    const revoked = await world.tokens.revoke(made.id, "bob");
    expect(revoked).toMatchObject({ id: made.id, state: "revoked", usesLeft: 2, revoked: { by: "bob" } });
    // Again, by another: the first stays.
    expect(await world.tokens.revoke(made.id, "eve")).toEqual(revoked);
    await expect(world.enrolWith(made.token, "late", await newKeys())).rejects.toMatchObject(refusedToken);
    expect(lastFault()).toBe("revoked");
    await expect(world.enrolWith(made.token, "early", keys)).rejects.toMatchObject(refusedToken);
    expect(world.registry.known("dream/late")).toBeUndefined();
    const identity = { keyPem: keys.keyPem, certificatePem: answer.certificatePem.toString() };
    (await openSession(world.client(identity))).stream.end();
    await expect(world.tokens.revoke("0".repeat(16), "bob")).rejects.toMatchObject({ code: "not-found" });
  });

  test("that two replicas spend and revoke at once counts each use, and gives none after the revocation", async () => {
    const other = await world.otherTokens();
    const made = await world.tokens.create({ environment: "dream", ttlMs: 60_000, uses: 4, by: "ada" });
    const claim = (n: number) => ({ agentName: `race-${n}`, spkiSha256: "0".repeat(64) });
    const spent = await Promise.allSettled(
      Array.from({ length: 6 }, (_, n) =>
        (n % 2 === 0 ? other : world.tokens).redeem(made.token, claim(n), null),
      ),
    );
    expect(spent.filter(({ status }) => status === "fulfilled")).toHaveLength(4);
    expect(await other.get(made.id)).toMatchObject({ state: "used", usesLeft: 0 });

    const next = await other.create({ environment: "dream", ttlMs: 60_000, uses: 9, by: "ada" });
    const tries = [0, 1, 2, 3].map((n) => world.tokens.redeem(next.token, claim(n), null));
    const [revoked, ...uses] = await Promise.allSettled([other.revoke(next.id, "bob"), ...tries]);
    expect(revoked).toMatchObject({ status: "fulfilled" });
    const after = await world.tokens.get(next.id);
    expect(after).toMatchObject({ state: "revoked", revoked: { by: "bob" } });
    expect(after.usedBy).toHaveLength(uses.filter(({ status }) => status === "fulfilled").length);
    await expect(world.tokens.redeem(next.token, claim(9), null)).rejects.toMatchObject({
      details: { fault: "revoked" },
    });
  });

  test("with three uses lets in three of ten that come at once", async () => {
    const token = await world.token("biscoe", 3);
    const tries = await Promise.allSettled(
      Array.from({ length: 10 }, async (_, i) => world.enrolWith(token, `many-${i}`, await newKeys())),
    );
    expect(tries.filter((t) => t.status === "fulfilled")).toHaveLength(3);
    const enrolled = world.registry.list().filter((record) => record.environment === "biscoe");
    expect(enrolled).toHaveLength(3);
  });

  test("may be shown twice by the agent that used it, when the answer was lost, and by nobody who comes late with it", async () => {
    const token = await world.token();
    const keys = await newKeys();
    await world.enrolWith(token, "again", keys);
    const answer = await world.enrolWith(token, "again", keys);
    const { stream } = await openSession(
      world.client({ keyPem: keys.keyPem, certificatePem: answer.certificatePem.toString() }),
    );
    stream.end();
    await expect(world.enrolWith(token, "somebody", await newKeys())).rejects.toMatchObject(refusedToken);
  });

  test("whose use was spent by a gateway that died before it registered the agent still works for that agent", async () => {
    const token = await world.token();
    const keys = await newKeys();
    const { registry, pki } = world.gatewayOptions;
    const key = await pki.readRequest(await csrOf(keys));
    await world.tokens.redeem(token, { agentName: "halfway", spkiSha256: key.spkiSha256 }, null);
    expect(await registry.find("dream/halfway")).toBeUndefined();
    await world.enrolWith(token, "halfway", keys);
    expect((await registry.find("dream/halfway"))?.spkiSha256).toBe(key.spkiSha256);
  });

  test("does not bring back an agent that was revoked; a new one does, with another key", async () => {
    const many = await world.token("dream", 5);
    const keys = await newKeys();
    await world.enrolWith(many, "outcast", keys);
    await world.registry.revoke("dream/outcast", { by: "ada", reason: "stolen" });
    await expect(world.enrolWith(many, "outcast", await newKeys())).rejects.toMatchObject(refusedToken);
    expect(lastFault()).toBe("agent-removed");
    const fresh = await world.token("dream", 5);
    const revokedKey = {
      code: status.PERMISSION_DENIED,
      details: expect.stringMatching(/was revoked: remove the directory/),
    };
    await expect(world.enrolWith(fresh, "outcast", keys)).rejects.toMatchObject(revokedKey);
    const other = await newKeys();
    const answer = await world.enrolWith(fresh, "outcast", other);
    const identity = { keyPem: other.keyPem, certificatePem: answer.certificatePem.toString() };
    (await openSession(world.client(identity))).stream.end();
    // Also when the key that came after it is revoked too.
    await world.registry.revoke("dream/outcast", { by: "ada", reason: "stolen again" });
    for (const revoked of [keys, other])
      await expect(world.enrolWith(await world.token(), "outcast", revoked)).rejects.toMatchObject(
        revokedKey,
      );
  });

  test("ends with the agent that came with it, also for other names", async () => {
    const many = await world.token("dream", 5);
    const untouched = await world.token("dream", 5);
    await world.enrolWith(many, "thief", await newKeys());
    const agent = { environment: "dream", name: "thief" };
    await revokeAgent({ ...world }, { ...agent, by: "ada", reason: "stolen" });
    await expect(world.enrolWith(many, "accomplice", await newKeys())).rejects.toMatchObject(refusedToken);
    await world.enrolWith(untouched, "bystander", await newKeys());
    // Again: nothing more happens, and the first reason stays.
    await revokeAgent({ ...world }, { ...agent, by: "bob", reason: "twice" });
    expect(await world.registry.stored("dream/thief")).toMatchObject({
      removedBy: "ada",
      removedReason: "stolen",
    });
  });

  test("is not made for an environment that does not exist, nor for ever, nor for everybody", async () => {
    const make = (request: object) =>
      world.tokens.create({ environment: "dream", ttlMs: 1_000, uses: 1, by: "test", ...request });
    await expect(make({ environment: "atlantis" })).rejects.toMatchObject({ code: "not-found" });
    for (const request of [{ ttlMs: 0 }, { ttlMs: 1e12 }, { uses: 0 }, { uses: 1e6 }, { uses: 1.5 }]) {
      await expect(make(request)).rejects.toMatchObject({ code: "request.invalid" });
    }
  });

  test("lies in the store as a hash alone", async () => {
    const token = await world.token();
    const kv = await world.connection.jetstream().views.kv("join-tokens");
    const entry = await kv.get(createHash("sha256").update(token).digest("hex"));
    expect(entry?.string()).toContain('"environment":"dream"');
    expect(entry?.string()).not.toContain(token);
  });
});

describe("a token that asks for approval", () => {
  const waiting = (fingerprintOf: RegExp) => ({
    code: status.FAILED_PRECONDITION,
    details: expect.stringMatching(fingerprintOf),
  });
  const create = async (uses = 1) =>
    (await world.tokens.create({ environment: "biscoe", ttlMs: 60_000, uses, approval: true, by: "test" }))
      .token;
  const requests = async (name: string) =>
    (await world.joinRequests.list()).filter((request) => request.name === name);
  const decide = async (name: string, approved: boolean, fingerprint?: string) => {
    const [request] = await requests(name);
    const about = { environment: "biscoe", name, approved, by: "ada" };
    await world.joinRequests.decide({ ...about, fingerprint: fingerprint ?? request?.fingerprint ?? "" });
  };

  test("gives a certificate to the key that was approved, and to no other", async () => {
    const token = await create(3);
    const [keys, other] = [await newKeys(), await newKeys()];
    await expect(world.enrolWith(token, "w1", keys)).rejects.toMatchObject(
      waiting(
        /^biscoe\/w1 waits for approval with the key sha256:[0-9a-f]{64}: insitu agents approve biscoe\/w1$/,
      ),
    );
    expect(await world.registry.stored("biscoe/w1")).toBeUndefined();
    const { spkiSha256 } = await world.pki.readRequest(await csrOf(keys));
    expect(await requests("w1")).toMatchObject([
      { fingerprint: `sha256:${spkiSha256}`, environment: "biscoe" },
    ]);
    // Nobody slips in under the name while a person looks at it, nor after that.
    const taken = { code: status.ALREADY_EXISTS };
    await expect(world.enrolWith(token, "w1", other)).rejects.toMatchObject(taken);
    await expect(decide("w1", true, `sha256:${"0".repeat(64)}`)).rejects.toMatchObject({ code: "conflict" });
    await decide("w1", true);
    await expect(world.enrolWith(token, "w1", other)).rejects.toMatchObject(taken);
    const answer = await world.enrolWith(token, "w1", keys);
    // The answer may be lost: what was approved once is not asked for again.
    await world.enrolWith(token, "w1", keys);
    const identity = { keyPem: keys.keyPem, certificatePem: answer.certificatePem.toString() };
    (await openSession(world.client(identity))).stream.end();
    expect(await requests("w1")).toEqual([]);
  });

  test("gives none to a key that was denied; the name is free for another", async () => {
    const token = await create(2);
    const [keys, other] = [await newKeys(), await newKeys()];
    await expect(world.enrolWith(token, "w2", keys)).rejects.toMatchObject(waiting(/w2/));
    await decide("w2", false);
    await expect(world.enrolWith(token, "w2", keys)).rejects.toMatchObject({
      code: status.PERMISSION_DENIED,
      details: "a person has denied biscoe/w2 to join with this key",
    });
    await expect(world.enrolWith(token, "w2", other)).rejects.toMatchObject(waiting(/w2/));
    await decide("w2", true);
    await world.enrolWith(token, "w2", other);
  });

  test("asks again for an agent that was revoked, whatever was approved before", async () => {
    const keys = await newKeys();
    const first = await create();
    await expect(world.enrolWith(first, "w3", keys)).rejects.toMatchObject(waiting(/w3/));
    await decide("w3", true);
    await world.enrolWith(first, "w3", keys);
    await world.registry.revoke("biscoe/w3", { by: "ada", reason: "stolen" });
    await expect(world.enrolWith(await create(), "w3", keys)).rejects.toMatchObject({
      code: status.PERMISSION_DENIED,
    });
    await expect(decide("nobody", true)).rejects.toMatchObject({ code: "not-found" });
  });

  test("is of no use to a replica from before there were approvals", async () => {
    const kv = await world.connection.jetstream().views.kv("join-tokens");
    const entry = await kv.get(
      createHash("sha256")
        .update(await create())
        .digest("hex"),
    );
    expect(entry?.json()).toMatchObject({ v: 2, approval: true });
  });
});

describe("a name", () => {
  test("that another agent works under is refused with a hint, and costs no use", async () => {
    const holder = await world.join("dream", "taken");
    const session = await openSession(world.client(holder));
    await world.registry.confirm("dream/taken");
    const token = await world.token();
    const err = await world.enrolWith(token, "taken", await newKeys()).catch((e: unknown) => e);
    expect(err).toMatchObject({
      code: status.ALREADY_EXISTS,
      details: expect.stringMatching(/choose another name/),
    });
    expect((err as { metadata: { get(k: string): unknown[] } }).metadata.get(ERROR_CODE_METADATA)).toEqual([
      "agent.name-taken",
    ]);
    await world.enrolWith(token, "free", await newKeys());
    session.stream.end();
  });

  test("whose certificate never reached its agent is given to a new key with a new token", async () => {
    await world.join("dream", "lost-answer");
    const agent = await world.join("dream", "lost-answer");
    (await openSession(world.client(agent))).stream.end();
  });

  test("that two keys want at once goes to one of them, and the other gets its use back", async () => {
    const [first, second] = [await newKeys(), await newKeys()];
    const { pki, registry } = world.gatewayOptions;
    const token = await world.token();
    // The winner registers and is at work between the other's look at the name and its registration.
    const agent = { environment: "dream", name: "contested" };
    const winner = await pki.issueAgentCertificate(agent, await pki.readRequest(await csrOf(first)));
    const racing = {
      ...registry,
      stored: async () => undefined,
      register: async (...args: Parameters<typeof registry.register>) => {
        await registry.register(agent, winner);
        await registry.confirm("dream/contested");
        return await registry.register(...args);
      },
    } as typeof registry;
    const csrDer = await csrOf(second);
    const request = { secret: token, agentName: "contested", csrDer, address: "192.0.2.1:1" };
    const { tokens, joinRequests } = world;
    const err = await enrol({ tokens, joinRequests, registry: racing, pki }, request).catch(
      (e: unknown) => e,
    );
    expect(InsituError.from(err).code).toBe("agent.name-taken");
    await world.enrolWith(token, "uncontested", second);
  });

  test.each(["", "Upper", "dots.in.it", "-dash", "a/b", "x".repeat(64), "näme"])(
    "like %j is refused",
    async (name) => {
      await expect(world.enrolWith(await world.token(), name, await newKeys())).rejects.toMatchObject({
        code: status.INVALID_ARGUMENT,
      });
    },
  );

  test("with a certificate request that is none is refused, and costs no use", async () => {
    const token = await world.token();
    const bad = world.enrolWith(token, "odd", await newKeys(), { csrDer: new Uint8Array([1, 2, 3]) });
    await expect(bad).rejects.toMatchObject({ code: status.INVALID_ARGUMENT });
    await world.enrolWith(token, "odd", await newKeys());
  });
});

describe("an address that keeps trying", () => {
  test("is told to wait, before its token is looked at", async () => {
    const strict = await startWorld({ enrolRateLimit: { burst: 11, refillMs: 3_600_000, maxAddresses: 10 } });
    try {
      for (let i = 0; i < 2; i++) {
        const guess = strict.enrolWith("x".repeat(43), "guess", await newKeys());
        await expect(guess).rejects.toMatchObject({ code: status.PERMISSION_DENIED });
      }
      const honest = strict.enrolWith(await strict.token(), "honest", await newKeys());
      await expect(honest).rejects.toMatchObject({ code: status.RESOURCE_EXHAUSTED });
    } finally {
      await strict.stop();
    }
  });
});
