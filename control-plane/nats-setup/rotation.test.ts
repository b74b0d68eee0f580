/** When a key of NATS is replaced, and when not. Replicas and nats-servers are what they say of themselves here. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, expect, test } from "vitest";
import { newSecret, systemClock } from "../../shared/system.ts";
import { firstBook, isStrict, KeyBook, rotated, stateOf } from "../access/nats-key-book.ts";
import { loadNatsOperator, loadOrCreateNatsOperator } from "../access/nats-operator.ts";
import type { NatsUsers } from "../access/nats-users.ts";
import { type Rotation, type RotationStep, rotate, rotationStatus } from "./rotation.ts";

const directory = mkdtempSync(join(tmpdir(), "insitu-rotation-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

interface Town {
  rotation: Rotation;
  step(what: "accounts" | "operator", step: RotationStep, force?: boolean): Promise<void>;
  /** Changes what is found, beside what is well. */
  replicas?: { connected: number; answers: { digest: string; told: boolean }[] };
  operatorKeys?: string[];
  serversExpected: number;
  users: NatsUsers[];
}

let towns = 0;
async function town(): Promise<Town> {
  const secrets = join(directory, String(towns++));
  await loadOrCreateNatsOperator(secrets);
  const made: Town = {
    serversExpected: 1,
    users: [],
    rotation: {
      secrets,
      clock: systemClock,
      open: async (operator) => ({
        replicas: async () =>
          made.replicas ?? { connected: 1, answers: [{ digest: operator.digest, told: true }] },
        servers: async () => [
          {
            name: "n1",
            operatorKeys: made.operatorKeys ?? operator.operatorSigningKeys,
            strict: isStrict(operator.book),
          },
        ],
        serversExpected: made.serversExpected,
        users: async () => made.users,
        [Symbol.asyncDispose]: async () => undefined,
      }),
    },
    step: (what, step, force = false) => rotate(made.rotation, { what, step, force }),
  };
  return made;
}

const fileOf = ({ rotation }: Town): string =>
  readFileSync(join(rotation.secrets, "nats-operator.json"), "utf8");

test("no step is made while a replica has other keys, has not told NATS of them, or does not answer", async () => {
  const place = await town();
  const { digest } = (await loadNatsOperator(place.rotation.secrets))!;
  const before = fileOf(place);
  const good = { digest, told: true };
  for (const replicas of [
    { connected: 0, answers: [] },
    { connected: 1, answers: [{ ...good, told: false }] },
    { connected: 2, answers: [good, { ...good, digest: "of other keys" }] },
    { connected: 2, answers: [good] },
  ]) {
    place.replicas = replicas;
    await expect(place.step("accounts", "add")).rejects.toMatchObject({ code: "conflict" });
    await expect(place.step("accounts", "add", true)).rejects.toMatchObject({ code: "conflict" });
  }
  expect(fileOf(place)).toBe(before);
  place.replicas = { connected: 2, answers: [good, good] };
  await place.step("accounts", "add");
  expect(fileOf(place)).not.toBe(before);
});

test("a key of accounts is not retired while an agent holds what it has signed, unless somebody insists", async () => {
  const place = await town();
  await place.step("accounts", "add");
  await place.step("accounts", "activate");
  const expiresAtS = Math.floor(systemClock.wallMs() / 1_000) + 60;
  const user = { userKey: "U", spkiSha256: "s", issuedAtS: 1, expiresAtS, revokedAtS: null };
  place.users = [{ v: 1, environment: "site", name: "away", users: [{ ...user, signedBy: 1 }] }];
  await expect(place.step("accounts", "retire")).rejects.toThrow(/1 agents hold.*site\/away/);
  expect((await rotationStatus(place.rotation)).holders).toEqual(["site/away"]);
  place.users = [{ v: 1, environment: "site", name: "away", users: [{ ...user, signedBy: 2 }] }];
  const before = fileOf(place);
  await place.step("accounts", "retire");
  expect(fileOf(place)).not.toBe(before);

  const other = await town();
  await other.step("accounts", "add");
  await other.step("accounts", "activate");
  other.users = [{ v: 1, environment: "site", name: "away", users: [{ ...user, signedBy: 1 }] }];
  await other.step("accounts", "retire", true);
  expect((await rotationStatus(other.rotation)).rotations[0]).toMatchObject({ state: "steady", keys: [2] });
});

test("a key of the operator signs only when every nats-server trusts it", async () => {
  const place = await town();
  place.operatorKeys = (await loadNatsOperator(place.rotation.secrets))!.operatorSigningKeys;
  await place.step("operator", "add");
  expect((await rotationStatus(place.rotation)).behind).toEqual(["n1"]);
  await expect(place.step("operator", "activate")).rejects.toThrow(/n1 trusts another operator/);
  delete place.operatorKeys;
  place.serversExpected = 3;
  await expect(place.step("operator", "activate")).rejects.toThrow(/1 of 3 nats-servers answer/);
  place.serversExpected = 1;
  await place.step("operator", "activate");
});

test("a step that is made twice changes nothing, and the file of before rotations is read", async () => {
  const place = await town();
  expect(JSON.parse(fileOf(place))).toMatchObject({ v: 1, operatorKey: 1, accountKey: 1 });
  for (const step of ["add", "activate", "retire"] as const) {
    await place.step("accounts", step);
    const once = fileOf(place);
    await place.step("accounts", step);
    expect(fileOf(place)).toBe(once);
  }
});

test("whatever the order of steps: a key signs only after it was accepted before, and what was retired never comes back", () => {
  const what = fc.constantFrom("operator" as const, "accounts" as const);
  const step = fc.constantFrom("add" as const, "activate" as const, "retire" as const);
  fc.assert(
    fc.property(fc.array(fc.tuple(what, step), { maxLength: 40 }), (steps) => {
      let book = KeyBook.parse(firstBook(newSecret(32)));
      const gone = { operator: new Set<number>(), accounts: new Set<number>() };
      for (const [i, [set, kind]] of steps.entries()) {
        const before = book;
        try {
          book = rotated(book, set, kind, { secret: newSecret(32), nowS: 1_000 - i });
        } catch (err) {
          expect(err).toMatchObject({ code: "request.invalid" });
          continue;
        }
        // What is stored is what was meant.
        expect(KeyBook.parse(JSON.parse(JSON.stringify(book)))).toEqual(book);
        const now = book[set].keys.map(({ generation }) => generation);
        const then = before[set].keys.map(({ generation }) => generation);
        expect(then).toContain(book[set].signs);
        if (book === before) continue;
        expect(book[set].changedAtS!).toBeGreaterThan(before[set].changedAtS ?? 0);
        for (const generation of then) if (!now.includes(generation)) gone[set].add(generation);
        expect(now.filter((generation) => gone[set].has(generation))).toEqual([]);
        // Only the very first follows from the root.
        expect(
          book[set].keys.every(({ generation, secret }) => (generation === 1) === (secret === null)),
        ).toBe(true);
        expect(stateOf(book[set]) === "steady").toBe(now.length === 1);
      }
    }),
  );
});
