import { generateKeyPairSync, randomBytes, sign } from "node:crypto";
import fc from "fast-check";
import { connect, type NatsConnection } from "nats";
import { pino } from "pino";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { type BatchPurpose, BatchTree, signedBatch, verifyBatch } from "../../shared/wire/batch-signature.ts";
import { encodeLogEntries } from "../../shared/wire/log-codec.ts";
import type { LogEntry } from "../../shared/wire/log-entries.ts";
import { logLeaf } from "../../shared/wire/log-signature.ts";
import { subjects } from "../../shared/wire/subjects.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { poisonOf } from "../../test/support/poison.ts";
import type { LogLine } from "../api/schemas.ts";
import type { RunQueries } from "../api/services.ts";
import { LogDoubts } from "../gateway/log-doubts.ts";
import type { LogChunk } from "../gateway/ports.ts";
import { ensureStreams } from "./jetstream.ts";
import { LogStore, type LogStoreOptions } from "./log-store.ts";
import type { PoisonStream } from "./poison-stream.ts";

let nats: TestNats;
let connection: NatsConnection;
let poison: PoisonStream;
let serial = 0;

beforeAll(async () => {
  nats = await startTestNats();
  connection = await connect({ servers: nats.url, user: nats.user, pass: nats.password });
  await ensureStreams(await connection.jetstreamManager(), 1);
  poison = await poisonOf(connection);
});
afterAll(async () => {
  await connection?.close();
  await nats?.stop();
});

/** A run with one step of one attempt: goes on until `end` says which log entry was the last. */
class OneRun {
  readonly runId = `run-${++serial}`;
  readonly #ended: Promise<void>;
  #resolve: () => void = () => undefined;
  #lastSeq = 0;

  constructor() {
    this.#ended = new Promise((resolve) => {
      this.#resolve = resolve;
    });
  }

  end(lastSeq: number): void {
    this.#lastSeq = lastSeq;
    this.#resolve();
  }

  get queries(): Pick<RunQueries, "get" | "follow"> {
    const ended = this.#ended;
    const detail = () => ({
      eventSeq: 1,
      steps: [{ id: "load", attempts: [{ attempt: 1, epoch: 1, logLastSeq: this.#lastSeq }] }],
    });
    return {
      get: () => detail() as unknown as ReturnType<RunQueries["get"]>,
      async *follow(_runId, _afterSeq, signal) {
        const aborted = new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve()));
        await Promise.race([ended, aborted]);
        if (signal.aborted) return;
        const end = { kind: "run.finished", atMs: 1, status: "succeeded", reason: "" } as const;
        yield { seq: 2, batch: { v: 1, events: [end] } };
      },
    };
  }
}

/** Of agents that sign nothing. */
const credulous: LogStoreOptions["doubts"] = { of: () => () => Promise.resolve(undefined) };

function logsOf(run: OneRun, granted = true, doubts = credulous): LogStore {
  return new LogStore({
    connection,
    clock: systemClock,
    log: pino({ level: "silent" }),
    poison,
    queries: run.queries,
    wasGranted: () => Promise.resolve(granted),
    doubts,
  });
}

const entry = (seq: number, data: Uint8Array = Buffer.from(`line ${seq}`)): LogEntry => ({
  seq,
  atMs: 1_000 + seq,
  stream: "stdout",
  data,
  droppedBytes: 0,
});

function chunk(run: OneRun, entries: LogEntry[]): LogChunk {
  const { encoding, bytes } = encodeLogEntries(entries);
  const at = { runId: run.runId, stepId: "load", attempt: 1, epoch: 1 };
  return { ...at, seq: 1, firstEntry: entries[0]!.seq, entryCount: entries.length, encoding, entries: bytes };
}

const range = (first: number, count: number) => Array.from({ length: count }, (_, n) => entry(first + n));

function read(logs: LogStore, run: OneRun, follow: boolean, signal = new AbortController().signal) {
  return logs.read({ runId: run.runId, follow, signal });
}

async function seqsOf(lines: AsyncIterable<LogLine>): Promise<number[]> {
  const seqs: number[] = [];
  for await (const line of lines) seqs.push(line.seq);
  return seqs;
}

describe("what is read", () => {
  test("is byte for byte what was written, binary and a megabyte long too", async () => {
    const run = new OneRun();
    const logs = logsOf(run);
    const binary = Uint8Array.from({ length: 512 }, (_, n) => n % 256);
    const noise = new Uint8Array(1024 * 1024 - 4096);
    for (let n = 0, x = 1; n < noise.length; n++) {
      x = Math.imul(x, 1_664_525) + 1_013_904_223;
      noise[n] = x >>> 24;
    }
    const zeros = new Uint8Array(1024 * 1024);
    const written = [binary, noise, zeros];
    for (const [n, data] of written.entries()) await logs.append("site/a", chunk(run, [entry(n + 1, data)]));
    const lines: LogLine[] = [];
    for await (const line of read(logs, run, false)) lines.push(line);
    expect(lines.map((line) => line.seq)).toEqual([1, 2, 3]);
    for (const [n, data] of written.entries()) {
      expect(Buffer.from(lines[n]!.data, "base64").equals(data)).toBe(true);
    }
    expect(lines[0]).toMatchObject({ step: "load", attempt: 1, epoch: 1, atMs: 1_001, stream: "stdout" });
  });

  test("is given once when a chunk is stored twice", async () => {
    const run = new OneRun();
    const logs = logsOf(run);
    for (const entries of [range(1, 3), range(1, 3), range(4, 2), range(3, 3), range(1, 5)]) {
      await logs.append("site/a", chunk(run, entries));
    }
    expect(await seqsOf(read(logs, run, false))).toEqual([1, 2, 3, 4, 5]);
  });

  test("holds the further entries of a chunk that begins like one before", async () => {
    const run = new OneRun();
    const logs = logsOf(run);
    await logs.append("site/a", chunk(run, range(1, 2)));
    await logs.append("site/a", chunk(run, range(1, 5)));
    expect(await seqsOf(read(logs, run, false))).toEqual([1, 2, 3, 4, 5]);
  });

  test("is each entry once and in order, however chunks overlap and in whatever order they come", async () => {
    const chunks = fc.array(fc.tuple(fc.integer({ min: 1, max: 12 }), fc.integer({ min: 1, max: 5 })), {
      minLength: 1,
      maxLength: 8,
    });
    await fc.assert(
      fc.asyncProperty(chunks, async (cuts) => {
        const run = new OneRun();
        const logs = logsOf(run);
        const written = new Set<number>();
        for (const [first, count] of cuts) {
          const entries = range(first, count);
          await logs.append("site/a", chunk(run, entries));
          for (const { seq } of entries) written.add(seq);
        }
        expect(await seqsOf(read(logs, run, false))).toEqual([...written].sort((a, b) => a - b));
      }),
      { numRuns: 60 },
    );
  });
});

describe("a reader that follows", () => {
  test("gets what comes, and ends after the last entry that the outcome announces", async () => {
    const run = new OneRun();
    const logs = logsOf(run);
    await logs.append("site/a", chunk(run, range(1, 2)));
    const seqs: number[] = [];
    for await (const { seq } of read(logs, run, true)) {
      seqs.push(seq);
      if (seq === 2) {
        // The run ends before its last chunk is here.
        run.end(5);
        await logs.append("site/a", chunk(run, range(3, 3)));
      }
    }
    expect(seqs).toEqual([1, 2, 3, 4, 5]);
  });

  test("does not wait for an entry that came in an overlapping chunk before its turn", async () => {
    const run = new OneRun();
    const logs = logsOf(run);
    await logs.append("site/a", chunk(run, range(3, 4)));
    await logs.append("site/a", chunk(run, range(1, 4)));
    run.end(6);
    const started = systemClock.monotonicMs();
    expect(await seqsOf(read(logs, run, true))).toEqual([1, 2, 3, 4, 5, 6]);
    expect(systemClock.monotonicMs() - started).toBeLessThan(8_000);
  });

  test("of a run that has ended without a word ends", async () => {
    const run = new OneRun();
    run.end(0);
    expect(await seqsOf(read(logsOf(run), run, true))).toEqual([]);
  });

  test("lets go when it is told to", async () => {
    const run = new OneRun();
    const logs = logsOf(run);
    await logs.append("site/a", chunk(run, range(1, 1)));
    const leaving = new AbortController();
    for await (const { seq } of read(logs, run, true, leaving.signal)) {
      expect(seq).toBe(1);
      leaving.abort();
    }
    expect(leaving.signal.aborted).toBe(true);
  });
});

test("a chunk of an attempt that was never granted to the agent's environment is refused and not kept", async () => {
  const run = new OneRun();
  await expect(logsOf(run, false).append("site/b", chunk(run, range(1, 1)))).rejects.toMatchObject({
    code: "auth.denied",
  });
  expect(await seqsOf(read(logsOf(run), run, false))).toEqual([]);
});

test("a chunk that cannot be read is set aside, and the others are read", async () => {
  const run = new OneRun();
  const logs = logsOf(run);
  await logs.append("site/a", chunk(run, range(1, 2)));
  const bad = { ...chunk(run, range(3, 2)), encoding: "gzip" as const, entries: Buffer.from("no gzip") };
  await logs.append("site/a", bad);
  const { seq } = await connection.jetstream().publish(subjects.log(run.runId, "load", 1), "no chunk");
  await logs.append("site/a", chunk(run, range(5, 1)));
  for (let reads = 0; reads < 2; reads++) expect(await seqsOf(read(logs, run, false))).toEqual([1, 2, 5]);
  await poison.close();
  expect((await poison.list()).map((one) => [one.source, one.seq])).toEqual([
    ["logs", seq - 1],
    ["logs", seq],
  ]);
});

test("a reader that is slower than the log holds little of it in memory, and gets all of it", async () => {
  const run = new OneRun();
  const logs = logsOf(run);
  const count = 200;
  // Random, so that they stay as long when they are compressed: 12 MiB, three times what may wait for a reader.
  for (let n = 1; n <= count; n++) {
    await logs.append("site/a", chunk(run, [entry(n, randomBytes(60 * 1024))]));
  }
  const seqs: number[] = [];
  for await (const line of read(logs, run, true)) {
    seqs.push(line.seq);
    await new Promise(setImmediate);
    if (line.seq === count) run.end(count);
  }
  expect(seqs).toEqual(Array.from({ length: count }, (_, n) => n + 1));
});

describe("of logs that were signed", () => {
  const [ours, others] = [generateKeyPairSync("ed25519"), generateKeyPairSync("ed25519")];
  const keyIds = { "site/a": "a".repeat(64), "site/b": "b".repeat(64), "elsewhere/c": "c".repeat(64) };
  type Agent = keyof typeof keyIds;
  const uriOf = (agent: string) => `spiffe://insitu.test/${agent}`;
  const pairOf = (agent: string) => (agent === "site/a" ? ours : others);

  const doubts = new LogDoubts({
    keys: {
      hasSigned: (purpose, agent, batch, { signature, keyId }) =>
        Promise.resolve(
          keyIds[agent as Agent] === keyId &&
            verifyBatch(pairOf(agent).publicKey, { purpose, agentUri: uriOf(agent), batch }, signature),
        ),
      signsSinceMs: (agent) => Promise.resolve(agent in keyIds ? 10 : undefined),
    },
    grantsOf: () => [
      { step: "load", epoch: 1, environment: "site", agent: "site/a", startedAtMs: 20 },
      { step: "load", epoch: 2, environment: "site", agent: "site/old", startedAtMs: 20 },
      { step: "load", epoch: 3, environment: "site", agent: "site/a", startedAtMs: 5 },
      { step: "load", epoch: 4, environment: "site", agent: null, startedAtMs: null },
    ],
    wasGranted: () => Promise.resolve(false),
    agentsOf: () => ["site/old", "site/a"],
  });

  /** As they go up in one batch. */
  function signed(chunks: LogChunk[], agent: Agent = "site/a", purpose: BatchPurpose = "insitu.logs.v1") {
    const tree = new BatchTree(chunks.map(logLeaf));
    const signature = sign(null, signedBatch(purpose, uriOf(agent), tree), pairOf(agent).privateKey);
    const about = { agent, keyId: keyIds[agent], signature: signature.toString("base64") };
    return chunks.map((one, i) => ({ ...one, signed: { ...about, batch: tree.placeOf(i) } }));
  }

  async function shown(run: OneRun): Promise<(number | string)[]> {
    const lines: (number | string)[] = [];
    for await (const line of read(logsOf(run, true, doubts), run, false))
      lines.push(line.refused?.replace(/ \(message.*/, "") ?? line.seq);
    return lines;
  }
  const put = async (run: OneRun, chunks: LogChunk[]) => {
    for (const one of chunks) await logsOf(run).append("site/a", one);
  };

  test("each chunk is shown, also of batches that share their entries", async () => {
    const run = new OneRun();
    const parts = [range(1, 2), range(3, 1), range(4, 3)].map((entries) => chunk(run, entries));
    await put(run, signed(parts));
    await put(run, signed([chunk(run, range(7, 2))]));
    expect(await shown(run)).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
  });

  type Change = (chunk: LogChunk, run: OneRun) => LogChunk;
  const altered: [string, Change, string][] = [
    [
      "whose text was changed",
      (c, run) => ({ ...chunk(run, [entry(3, Buffer.from("lie"))]), signed: c.signed }),
      "site/a signed",
    ],
    ["that claims more entries", (c) => ({ ...c, entryCount: 900 }), "site/a signed"],
    ["of another epoch", (c) => ({ ...c, epoch: 3 }), "site/a signed"],
    ["of another attempt", (c) => ({ ...c, attempt: 2 }), "site/a signed"],
    [
      "at another index of its batch",
      (c) => ({ ...c, signed: { ...c.signed!, batch: { ...c.signed!.batch, index: 0 } } }),
      "site/a signed",
    ],
    [
      "that is said to be of a larger batch",
      (c) => ({ ...c, signed: { ...c.signed!, batch: { ...c.signed!.batch, size: 4 } } }),
      "site/a signed",
    ],
    [
      "that is said to be another agent's",
      (c) => ({ ...c, signed: { ...c.signed!, agent: "site/b" } }),
      "site/b signed",
    ],
    ["signed by an agent of another site", (c) => signed([c], "elsewhere/c")[0]!, "not granted"],
    ["signed as a report", (c) => signed([c], "site/a", "insitu.reports.v1")[0]!, "site/a signed"],
    [
      "with another thing in the place of its signature",
      (c) => ({ ...c, signed: { ...c.signed!, keyId: "none" } }),
      "is none",
    ],
    ["without its signature", (c) => ({ ...c, signed: undefined }), "site/a signs its logs"],
    [
      "without a signature, of a grant that nobody took",
      (c) => ({ ...c, epoch: 4, signed: undefined }),
      "signs its logs",
    ],
    [
      "without a signature, of a grant that never was",
      (c) => ({ ...c, epoch: 9, signed: undefined }),
      "nobody is known",
    ],
  ];
  test.each(altered)(
    "a chunk %s is named in its place, set aside, and hides none of the others",
    async (_, change, why) => {
      const run = new OneRun();
      const [first, second, third] = signed(
        [range(1, 2), range(3, 1), range(4, 1)].map((of) => chunk(run, of)),
      );
      await put(run, [first!, change(second!, run), third!]);
      const [one, two, refused, ...rest] = await shown(run);
      expect([one, two, ...rest]).toEqual([1, 2, 4]);
      expect(refused).toContain("of attempt");
      expect(refused).toContain(why);
      await poison.close();
      const kept = (await poison.list()).filter(({ subject }) => subject.includes(run.runId));
      expect(kept).toMatchObject([{ source: "logs" }]);
    },
  );

  test("those of agents that did not sign when the attempt began are shown", async () => {
    const run = new OneRun();
    await put(run, [
      { ...chunk(run, range(1, 1)), epoch: 2 },
      { ...chunk(run, range(2, 1)), epoch: 3 },
    ]);
    expect(await shown(run)).toEqual([1, 2]);
  });
});
