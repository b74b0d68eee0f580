import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { InsituError } from "../../shared/errors.ts";
import {
  type AgentTrust,
  type AuthorityRecord,
  activate,
  add,
  firstRecord,
  retire,
  serving,
  trusted,
} from "./authority-book.ts";

const issuer = (n: number) => ({ id: String(n).padStart(16, "0"), rootPin: `sha256:${n}` });
const deed = (atMs: number) => ({ atMs, by: "ada" });
const nobody = { agents: [], force: false };
const agent = (id: string, roots: number[] | null, from: number | null): AgentTrust => ({
  id,
  roots: roots === null ? null : roots.map((n) => issuer(n).rootPin),
  issuer: from === null ? null : issuer(from).id,
});

describe("an issuer", () => {
  const first = firstRecord(issuer(1));
  const two = add(first, issuer(2), deed(10));
  const moved = activate(two, deed(20), nobody);

  test("that is added changes nothing but what is trusted", () => {
    expect(trusted(two).map(({ id }) => id)).toEqual([issuer(1).id, issuer(2).id]);
    expect([two.active, serving(two).id]).toEqual([issuer(1).id, issuer(1).id]);
    expect(() => add(two, issuer(3), deed(11))).toThrow(/waits to be activated/);
    expect(() => add(moved, issuer(1), deed(21))).toThrow(/is there already/);
  });

  test("is activated when every agent trusts its root, or by force; servers keep to the former one", () => {
    const agents = [agent("site/a", [1, 2], 1), agent("site/b", [1], 1), agent("site/old", null, null)];
    expect(() => activate(two, deed(20), { agents, force: false })).toThrow(
      /2 agents have not said .*site\/b, site\/old/,
    );
    for (const of of [
      { agents, force: true },
      { agents: agents.slice(0, 1), force: false },
    ]) {
      const next = activate(two, deed(20), of);
      expect([next.active, serving(next).id]).toEqual([issuer(2).id, issuer(1).id]);
    }
    expect(() => activate(moved, deed(30), nobody)).toThrow(/no issuer waits/);
  });

  test("is retired when no agent needs it, or by force; never the active one", () => {
    const agents = [agent("site/a", [1, 2], 2), agent("site/b", [1, 2], 1), agent("site/c", [1], 2)];
    const of = { agents, force: false };
    expect(() => retire(moved, issuer(1).id, deed(30), of)).toThrow(/2 agents have .*site\/b, site\/c/);
    const done = retire(moved, issuer(1).id, deed(30), { agents, force: true });
    expect([serving(done).id, trusted(done).length]).toEqual([issuer(2).id, 1]);
    expect(retire(done, issuer(1).id, deed(40), of)).toBe(done);
    expect(() => retire(done, issuer(2).id, deed(40), nobody)).toThrow(/is the active one/);
    expect(() => retire(done, issuer(9).id, deed(40), nobody)).toThrow(/there is no issuer/);
    // One that was added by mistake can go again, and nobody is in its way who is not its.
    const waits = { agents: [agent("site/a", [1], 1)], force: false };
    expect(trusted(retire(two, issuer(2).id, deed(30), waits))).toHaveLength(1);
  });

  test("below a root that stays trusted is retired when no agent has its certificate, whatever else they trust", () => {
    const renewed = activate(
      add(moved, { ...issuer(3), rootPin: issuer(2).rootPin }, deed(30)),
      deed(31),
      nobody,
    );
    const of = (from: number) => ({ agents: [agent("site/a", [2], from)], force: false });
    expect(() => retire(renewed, issuer(2).id, deed(40), of(2))).toThrow(/an agent has not left/);
    expect(trusted(retire(renewed, issuer(2).id, deed(40), of(3)))).toHaveLength(2);
  });
});

test("whatever is asked in whatever order, the active issuer and that of servers are trusted, and no revision comes twice", () => {
  const step = fc.oneof(
    fc.record({ kind: fc.constant("add" as const), n: fc.integer({ min: 2, max: 6 }) }),
    fc.record({ kind: fc.constant("activate" as const), force: fc.boolean() }),
    fc.record({
      kind: fc.constant("retire" as const),
      n: fc.integer({ min: 1, max: 6 }),
      force: fc.boolean(),
    }),
  );
  const agents = fc.array(
    fc.record({
      id: fc.constantFrom("site/a", "site/b"),
      roots: fc.option(fc.array(fc.integer({ min: 1, max: 6 }))),
      from: fc.option(fc.integer({ min: 1, max: 6 })),
    }),
    { maxLength: 2 },
  );
  fc.assert(
    fc.property(
      fc.array(fc.tuple(step, agents, fc.integer({ min: 0, max: 9 })), { maxLength: 30 }),
      (steps) => {
        let record: AuthorityRecord = firstRecord(issuer(1));
        for (const [asked, those, atMs] of steps) {
          const before = record;
          const of = {
            agents: those.map(({ id, roots, from }) => agent(id, roots, from)),
            force: "force" in asked && asked.force,
          };
          try {
            if (asked.kind === "add") record = add(record, issuer(asked.n), deed(atMs));
            else if (asked.kind === "activate") record = activate(record, deed(atMs), of);
            else record = retire(record, issuer(asked.n).id, deed(atMs), of);
          } catch (err) {
            expect(err).toBeInstanceOf(InsituError);
          }
          if (record !== before) expect(record.revision).toBeGreaterThan(before.revision);
          const ids = trusted(record).map(({ id }) => id);
          expect(ids).toContain(record.active);
          expect(ids).toContain(serving(record).id);
          expect(record.firstPin).toBe(issuer(1).rootPin);
          // Unless somebody insisted, no agent is left with a certificate or roots that are worth nothing.
          if (record !== before && asked.kind === "retire" && !of.force)
            for (const { roots, issuer: from } of of.agents) {
              expect(from).not.toBe(issuer(asked.n).id);
              const gone = issuer(asked.n).rootPin;
              if (trusted(record).every(({ rootPin }) => rootPin !== gone))
                expect(roots).toContain(serving(record).rootPin);
            }
        }
      },
    ),
  );
});
