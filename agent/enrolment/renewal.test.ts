import { createPublicKey, X509Certificate } from "node:crypto";
import { expect, test } from "vitest";
import { type Clock, systemClock } from "../../shared/system.ts";
import { quiet, testDirectory } from "../agent.fixture.ts";
import { newRoot } from "../issuers.fixture.ts";
import { createAuthority } from "../uplink/gateway.fixture.ts";
import { certificateRequest } from "./certificate-request.ts";
import { type Identity, loadIdentity, newKey, saveIdentity } from "./identity.ts";
import { Renewal, renewAtMs } from "./renewal.ts";

const authority = await createAuthority();
const former = authority.identity(7443);
const DUE_MS = renewAtMs(former.certificatePem);

/** A clock that runs nothing by itself: what was put off last is run by `pass`. */
function pending() {
  const state = { waitMs: 0, run: () => {} };
  const clock = {
    after: (waitMs: number, run: () => void) => {
      Object.assign(state, { waitMs, run });
      return { cancel: () => undefined };
    },
  } as unknown as Clock;
  return { clock, state };
}

test("renews at once when another issuer is named, once; with one that the control plane has not, again after an hour", async () => {
  using directory = testDirectory();
  const [ours, next] = [await newRoot("ours"), await newRoot("next")];
  const uri = "spiffe://insitu.test/env/dream/agent/a1";
  const keyPem = newKey();
  const certificatePem = Buffer.from(await ours.sign(certificateRequest("a1", keyPem), uri));
  const identity = { ...former, keyPem, certificatePem, caPem: Buffer.from(ours.pem) };
  saveIdentity(directory.path, identity);
  const { clock, state } = pending();
  let nowMs = systemClock.wallMs();
  let issuer = ours;
  let asked = 0;
  const renewal = new Renewal({
    clock,
    log: quiet,
    stateDir: directory.path,
    identity,
    nowMs: () => nowMs,
    connected: () => true,
    request: async (csr) => {
      asked++;
      return Buffer.from(await issuer.sign(csr, uri));
    },
    recover: async () => Buffer.alloc(0),
    renewed: () => undefined,
  });
  renewal.look();
  expect([asked, state.waitMs]).toEqual([0, 60_000]);
  const held = { revision: 2, issuerPin: next.pin, caPem: Buffer.from(ours.pem + next.pem) };
  renewal.useRoots(held);
  await renewal.settled();
  for (let looks = 0; looks < 5; looks++) renewal.look();
  await renewal.settled();
  expect(asked).toBe(1);
  // Their life is four hours: nothing else makes it due.
  issuer = next;
  nowMs += 3_600_000;
  state.run();
  await renewal.settled();
  for (let looks = 0; looks < 5; looks++) renewal.look();
  await renewal.settled();
  expect(asked).toBe(2);
  expect(loadIdentity(directory.path)!.certificatePem.equals(certificatePem)).toBe(false);
  renewal.close();
});

test("is due at two thirds of the certificate's life", () => {
  const { validFrom, validTo } = new X509Certificate(former.certificatePem);
  const [from, to] = [Date.parse(validFrom), Date.parse(validTo)];
  expect((DUE_MS - from) / (to - from)).toBeCloseTo(2 / 3, 6);
});

test("asks for nothing before that or without a connection, looks again within a minute, and keeps what it has when the answer is of no use", async () => {
  using directory = testDirectory();
  saveIdentity(directory.path, former);
  const { clock, state } = pending();
  let nowMs = DUE_MS - 10_000;
  let connected = true;
  const asked: Buffer[] = [];
  const renewed: Identity[] = [];
  const recovered: Buffer[] = [];
  const answers = [
    async (): Promise<Buffer> => former.certificatePem, // for another key
    async (): Promise<Buffer> => Buffer.from("no certificate"),
    async (): Promise<Buffer> => {
      throw new Error("no answer");
    },
  ];
  const renewal = new Renewal({
    clock,
    log: quiet,
    stateDir: directory.path,
    identity: former,
    nowMs: () => nowMs,
    connected: () => connected,
    request: (csr) => answers[asked.push(csr) - 1]!(),
    recover: async (csr) => {
      recovered.push(csr);
      throw new Error("it waits for approval");
    },
    renewed: (identity) => renewed.push(identity),
  });
  renewal.look();
  expect(state.waitMs).toBe(10_000);
  nowMs = DUE_MS;
  connected = false;
  state.run();
  expect(asked).toEqual([]);
  connected = true;
  for (let tries = 1; tries <= answers.length; tries++) {
    expect(state.waitMs).toBe(60_000);
    state.run();
    await expect.poll(() => asked.length).toBe(tries);
    await renewal.settled();
  }
  expect(new Set(asked.map(String)).size).toBe(answers.length);
  expect(renewed).toEqual([]);
  expect(loadIdentity(directory.path)?.certificatePem).toEqual(former.certificatePem);
  // Expired, and without a connection: it comes back with the key that it has.
  connected = false;
  nowMs = former.notAfterMs;
  state.run();
  await renewal.settled();
  expect(state.waitMs).toBe(10_000);
  expect(recovered).toHaveLength(1);
  expect(recovered[0]!.includes(createPublicKey(former.keyPem).export({ type: "spki", format: "der" }))).toBe(
    true,
  );
  renewal.close();
  state.run();
  expect(asked).toHaveLength(answers.length);
});
