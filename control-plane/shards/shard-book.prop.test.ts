import fc from "fast-check";
import { expect, test } from "vitest";
import { SHARD_COUNT } from "../../shared/wire/subjects.ts";
import {
  type ClusterRecord,
  emptyRecord,
  excess,
  farewell,
  handOver,
  Liveness,
  type Member,
  ownedBy,
  signOfLife,
} from "./shard-book.ts";

const member = (name: number, instance = 1): Member => ({
  id: `replica-${name}`,
  instance: `${name}.${instance}`,
  beat: 0,
  url: "",
  gateway: "",
  software: "",
  startedAtMs: 0,
});

/** Replicas that take turns on one record, as compare-and-set makes them. */
class Cluster {
  record: ClusterRecord = emptyRecord("f");
  readonly replicas = new Map<number, { me: Member; liveness: Liveness }>();
  #instances = 0;

  start(name: number): void {
    this.replicas.set(name, { me: member(name, ++this.#instances), liveness: new Liveness() });
  }

  /** One round, as the service makes it: a sign of life with claims, then a hand-over of what is too much. */
  turn(name: number): void {
    const replica = this.replicas.get(name);
    if (!replica) return;
    replica.me = { ...replica.me, beat: replica.me.beat + 1 };
    replica.liveness.observe(this.record);
    this.record = signOfLife(this.record, replica.me, replica.liveness);
    replica.liveness.advance();
    this.record = handOver(this.record, replica.me, excess(this.record, replica.me, replica.liveness));
  }

  leave(name: number): void {
    const replica = this.replicas.get(name);
    if (replica) this.record = farewell(this.record, replica.me);
    this.replicas.delete(name);
  }

  settle(): void {
    for (let round = 0; round < 12; round++) for (const name of this.replicas.keys()) this.turn(name);
  }
}

const action = fc.record({
  what: fc.constantFrom("start", "turn", "turn", "turn", "crash", "leave"),
  who: fc.integer({ min: 1, max: 5 }),
});

test("whatever comes and goes, every shard ends with one living owner, and all have equal shares", () => {
  fc.assert(
    fc.property(fc.array(action, { maxLength: 60 }), (actions) => {
      const cluster = new Cluster();
      for (const { what, who } of actions) {
        if (what === "start") cluster.start(who);
        else if (what === "turn") cluster.turn(who);
        else if (what === "crash") cluster.replicas.delete(who);
        else cluster.leave(who);
      }
      if (cluster.replicas.size === 0) cluster.start(1);
      cluster.settle();
      const sizes = [...cluster.replicas.values()].map(({ me }) => ownedBy(cluster.record, me).size);
      expect(sizes.reduce((sum, size) => sum + size, 0)).toBe(SHARD_COUNT);
      expect(Math.max(...sizes) - Math.min(...sizes)).toBeLessThanOrEqual(1);
    }),
  );
});

test("a shard's epoch grows with each change of its owner, and with nothing else", () => {
  fc.assert(
    fc.property(fc.array(action, { maxLength: 60 }), (actions) => {
      const cluster = new Cluster();
      for (const { what, who } of actions) {
        const before = cluster.record.shards;
        if (what === "start") cluster.start(who);
        else if (what === "turn") cluster.turn(who);
        else if (what === "crash") cluster.replicas.delete(who);
        else cluster.leave(who);
        cluster.record.shards.forEach((shard, index) => {
          const former = before[index]!;
          if (shard.owner === former.owner && shard.instance === former.instance)
            expect(shard.epoch).toBeGreaterThanOrEqual(former.epoch);
          else expect(shard.epoch).toBeGreaterThan(former.epoch);
        });
      }
    }),
  );
});

test("a silent replica is dead after three writes of another, and a restarted one has its shards back at once", () => {
  const cluster = new Cluster();
  cluster.start(1);
  cluster.turn(1);
  cluster.start(2);
  cluster.settle();
  cluster.replicas.delete(1);
  for (const expected of [32, 32, 64]) {
    cluster.turn(2);
    expect(ownedBy(cluster.record, cluster.replicas.get(2)!.me).size).toBe(expected);
  }
  cluster.replicas.delete(2);
  cluster.start(2);
  cluster.turn(2);
  expect(ownedBy(cluster.record, cluster.replicas.get(2)!.me).size).toBe(SHARD_COUNT);
});
