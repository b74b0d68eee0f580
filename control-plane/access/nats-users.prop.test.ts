import fc from "fast-check";
import { expect, test } from "vitest";
import { grant, holdersOf, type NatsUsers, revocationsOf, revoke } from "./nats-users.ts";

const DAY_S = 86_400;
const event = fc.oneof(
  fc.record({
    kind: fc.constant("grant" as const),
    userKey: fc.constantFrom("U1", "U2", "U3"),
    spkiSha256: fc.constantFrom("one", "two"),
    passS: fc.nat(DAY_S),
  }),
  fc.record({
    kind: fc.constant("revoke" as const),
    keep: fc.subarray(["one", "two"]),
    passS: fc.nat(DAY_S),
  }),
);

test("NATS refuses every JWT of an identity that was put out, and takes every one that was given since", () => {
  fc.assert(
    fc.property(fc.array(event, { maxLength: 30 }), (events) => {
      let nowS = 1_000;
      let record: NatsUsers | undefined;
      /** What agents may have kept, with whether it is to open anything. */
      let given: { userKey: string; spki: string; issuedAtS: number; expiresAtS: number; good: boolean }[] =
        [];
      for (const happened of events) {
        nowS += happened.passS;
        if (happened.kind === "grant") {
          const { userKey, spkiSha256 } = happened;
          const about = { environment: "e", name: "a", userKey, spkiSha256, nowS, signedBy: 1 };
          const { next, user } = grant(record, { ...about, validForS: DAY_S, notAfterS: nowS + 30 * DAY_S });
          record = next;
          expect(user.expiresAtS - nowS).toBeGreaterThanOrEqual(DAY_S / 2);
          const { issuedAtS, expiresAtS } = user;
          given.push({ userKey, spki: spkiSha256, issuedAtS, expiresAtS, good: true });
        } else if (record) {
          record = revoke(record, happened.keep, nowS) ?? record;
          // A key that went from one identity to another is put out with the latter.
          const owner = new Map(record.users.map((user) => [user.userKey, user.spkiSha256]));
          given = given.map((jwt) => ({
            ...jwt,
            good: jwt.good && happened.keep.includes(owner.get(jwt.userKey) ?? ""),
          }));
        }
        const revoked = revocationsOf(record ? [record] : []);
        for (const { userKey, issuedAtS, expiresAtS, good } of given) {
          if (expiresAtS <= nowS) continue; // refused without our help
          expect(issuedAtS <= (revoked[userKey] ?? -1)).toBe(!good);
        }
      }
    }),
  );
});

test("nothing outlives the agent's certificate", () => {
  const about = { environment: "e", name: "a", userKey: "U1", spkiSha256: "one", nowS: 0, signedBy: 1 };
  expect(grant(undefined, { ...about, validForS: DAY_S, notAfterS: 60 }).user.expiresAtS).toBe(60);
});

test("what stands is given again, so that an agent that comes back changes nothing", () => {
  const about = {
    environment: "e",
    name: "a",
    userKey: "U1",
    spkiSha256: "one",
    validForS: DAY_S,
    notAfterS: 9e9,
    signedBy: 1,
  };
  const first = grant(undefined, { ...about, nowS: 1 });
  expect(grant(first.next, { ...about, nowS: 1_000 })).toEqual(first);
  expect(grant(first.next, { ...about, nowS: DAY_S * 0.6 }).user.issuedAtS).toBe(DAY_S * 0.6);
});

test("an agent that brings ever new keys is refused, and keeps those that it has", () => {
  const about = {
    environment: "e",
    name: "a",
    spkiSha256: "one",
    nowS: 1,
    validForS: DAY_S,
    notAfterS: 9e9,
    signedBy: 1,
  };
  let record: NatsUsers | undefined;
  for (let i = 0; i < 16; i++) record = grant(record, { ...about, userKey: `U${i}` }).next;
  expect(() => grant(record, { ...about, userKey: "U16" })).toThrow(/brought 16 NATS keys/);
  expect(grant(record, { ...about, userKey: "U3" }).user.userKey).toBe("U3");
});

test("after another key signs, an agent that comes is given anew; until then it holds what the former has signed", () => {
  const about = {
    environment: "e",
    name: "a",
    userKey: "U1",
    spkiSha256: "one",
    validForS: DAY_S,
    notAfterS: 9e9,
  };
  const before = grant(undefined, { ...about, nowS: 1, signedBy: 1 });
  expect(holdersOf([before.next], 1, 2)).toEqual(["e/a"]);
  expect(holdersOf([before.next], 1, DAY_S + 1)).toEqual([]);
  expect(holdersOf([revoke(before.next, [], 2)!], 1, 2)).toEqual([]);
  const after = grant(before.next, { ...about, nowS: 2, signedBy: 2 });
  expect(after.user).toMatchObject({ issuedAtS: 2, signedBy: 2 });
  expect([holdersOf([after.next], 1, 2), holdersOf([after.next], 2, 2)]).toEqual([[], ["e/a"]]);
});
