/**
 * A copy of the end of each stream, for a single nats-server of others that may not sync what it acknowledges: see
 * docs/adr/0033-a-copy-of-the-tail-of-each-stream.md.
 *
 * What is published is copied and synced before it is acknowledged, and what is read before it is acted on. After
 * each start of nats-server what it has lost is put back before anything else is published: all of that goes over a
 * connection that ends with the server, so that nothing of ours can reach the next one before.
 */
import { mkdir, open } from "node:fs/promises";
import { join } from "node:path";
import type { NatsConnection } from "nats";
import type { Logger } from "pino";
import { InsituError } from "../../../shared/errors.ts";
import type { Clock, Timer } from "../../../shared/system.ts";
import { BUCKETS, STREAMS, subjects, TAIL_KEEPERS } from "../../../shared/wire/subjects.ts";
import {
  errorCode,
  NO_MESSAGE_FOUND,
  onReconnect,
  READ_TIMEOUT_MS,
  STREAM_NOT_FOUND,
  storeError,
} from "../jetstream.ts";
import type { Publication, Published } from "../publish.ts";
import { publish } from "../publish.ts";
import { refuseHalfRestored } from "../restore-mark.ts";
import { type Attempt, flushBeforeAnswer, type StreamDisk } from "../stream-disk.ts";
import { Coverage } from "./coverage.ts";
import { ensureKeepers, Keepers } from "./keepers.ts";
import { type HeldStream, type LostMessage, type Piece, StreamRestore } from "./restore.ts";
import { TailFiles } from "./tail-files.ts";
import type { TailMessage, TailRecord, TailStream } from "./tail-record.ts";

/**
 * How long NATS has to be seen to run before a copy is dropped. nats-server syncs what it is writing to every two
 * minutes; a file that filled up between two syncs it leaves to the kernel, which writes what is 30 s old.
 */
export const KEEP_MS = 15 * 60_000;
const TICK_MS = 10_000;
const FILE_MAX_BYTES = 32 * 1024 * 1024;
const FILE_MAX_MS = 60_000;
const REDIAL_MS = 250;
const TELL_AGAIN_MS = 1_000;
/** As long as one try to publish may take. */
const PATIENCE_MS = 3_000;
const KEEPER_PATIENCE_MS = 5_000;
/** Messages fetched at a time, of those that others wrote. */
const FETCH_MAX = 32;
/** At a start: how far back it looks for what is stored and in no copy. */
const LOOK_BACK_MAX = 10_000;
const NAMES = [...Object.values(STREAMS), ...Object.values(BUCKETS).map((bucket) => `KV_${bucket}`)];
/** What NATS has of it may be lost: the runs owe their offers, and make them again. */
const UNCOPIED: ReadonlySet<string> = new Set([STREAMS.work]);
const GONE = new Set<number | undefined>([NO_MESSAGE_FOUND, 10_043, 10_057]);

export interface TailCopyOptions {
  directory: string;
  /** What readers use. It stays the caller's. */
  connection: NatsConnection;
  /** A connection that ends when it is lost. */
  dial(): Promise<NatsConnection>;
  replicaId: string;
  clock: Clock;
  log: Logger;
  keepMs?: number;
  peersMaxMs?: number;
}

interface Known {
  config: Record<string, unknown>;
  coverage: Coverage;
}

export class TailCopy implements StreamDisk, AsyncDisposable {
  readonly #options: TailCopyOptions;
  readonly #files: TailFiles;
  readonly #known = new Map<string, Known>();
  /** The last sequence of each stream in a file that may be dropped one day. */
  readonly #lastSeqs = new Map<number, Map<string, number>>();
  /** When a file was closed, on the clock that runs while NATS does. */
  readonly #closedAtMs = new Map<number, number>();
  readonly #underWay = new Map<string, Set<Promise<unknown>>>();
  readonly #onRestored = new Set<() => Promise<void>>();
  #telling: Promise<unknown> = Promise.resolve();
  readonly #stop = new AbortController();
  #writer: NatsConnection | undefined;
  #waiters: (() => void)[] = [];
  /** Why nothing is published now, when it is not that NATS is away. */
  #trouble: InsituError | undefined;
  #restoredOn = "";
  #servedMs = 0;
  #seenAtMs: number | undefined;
  #turnedAtMs = 0;
  #ticking: Promise<void> = Promise.resolve();
  #timer: Timer | undefined;
  #forget: () => void = () => undefined;
  #following: Promise<void> = Promise.resolve();

  constructor(options: TailCopyOptions) {
    this.#options = options;
    this.#files = new TailFiles(options.directory, () =>
      [...this.#known.keys()].map((name) => this.#about(name)),
    );
  }

  /**
   * Puts back what is missing, before anything is read. From then on the connection's answers pass here.
   *
   * @throws conflict when more is missing than the copy holds
   * @throws internal when the copy is damaged
   */
  async start(signal: AbortSignal): Promise<void> {
    await this.#files.open();
    const stop = (): void => this.#stop.abort(signal.reason);
    signal.addEventListener("abort", stop, { once: true });
    await this.#open().finally(() => signal.removeEventListener("abort", stop));
    flushBeforeAnswer(this.#options.connection, this);
    this.#forget = onReconnect(this.#options.connection, () => this.#wake());
    await this.#sayThatWeAreHere();
    this.#following = this.#follow();
    this.#timer = this.#options.clock.every(TICK_MS, () => {
      this.#ticking = this.#ticking.then(() => this.#tick());
    });
  }

  /** Streams may have been made anew: what hangs on them has to be too. Called again when it throws. */
  onRestored(listener: () => Promise<void>): void {
    this.#onRestored.add(listener);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort(new InsituError("cancelled", "closed"));
    this.#forget();
    this.#timer?.cancel();
    this.#wake();
    await this.#writer?.close();
    await this.#following;
    await this.#writer?.close(); // one that was opened meanwhile
    await this.#ticking;
    await this.#telling;
    await this.#settled();
    await this.#files.close();
  }

  async store(message: Publication, attempt: Attempt): Promise<Published> {
    const writer = await this.#openWriter();
    return await this.#during(message.stream, async () => {
      const published = await attempt(writer);
      if (published.kind === "stored") await this.#keep([messageOf(message, published.seq)], writer);
      return published;
    });
  }

  async flush(stream: string, upToSeq: number): Promise<void> {
    const writer = this.#sameServer();
    // What was read from a server that has lost something may be what was before.
    if (!writer) throw this.#away();
    const { coverage } = await this.#knownOf(stream, writer);
    if (upToSeq <= coverage.covered) return;
    await Promise.allSettled([...(this.#underWay.get(stream) ?? [])]);
    try {
      for (;;) {
        const missing = coverage.missing(upToSeq, FETCH_MAX);
        if (missing.length === 0) return;
        await this.#fetch(stream, missing, writer);
      }
    } catch (err) {
      throw storeError(err, `copy of ${stream}`);
    }
  }

  /** Stored by others, or by us without an answer. */
  async #fetch(stream: string, seqs: readonly number[], writer: NatsConnection): Promise<void> {
    const found = await Promise.all(seqs.map((seq) => messageAt(writer, stream, seq)));
    await this.#keep(
      found.flatMap((message) => message?.record ?? []),
      writer,
    );
    const { coverage } = await this.#knownOf(stream, writer);
    for (const seq of seqs) coverage.add(seq);
  }

  async #keep(messages: readonly TailMessage[], writer: NatsConnection): Promise<void> {
    if (messages.length === 0) return;
    for (const { stream } of messages) await this.#knownOf(stream, writer);
    const file = await this.#files.append(messages);
    for (const { stream, seq } of messages) {
      this.#known.get(stream)!.coverage.add(seq);
      this.#noteLast(file, stream, seq);
    }
  }

  #noteLast(file: number, stream: string, seq: number): void {
    const lastSeqs = this.#lastSeqs.get(file) ?? new Map<string, number>();
    this.#lastSeqs.set(file, lastSeqs.set(stream, Math.max(seq, lastSeqs.get(stream) ?? 0)));
  }

  /** One that was made since the last start of NATS: all of it is copied. */
  async #knownOf(stream: string, writer: NatsConnection): Promise<Known> {
    return this.#known.get(stream) ?? (await this.#meet(stream, writer, async () => 0));
  }

  async #meet(
    stream: string,
    writer: NatsConnection,
    floorOf: (lastSeq: number) => Promise<number>,
  ): Promise<Known> {
    const manager = await writer.jetstreamManager({ checkAPI: false, timeout: READ_TIMEOUT_MS });
    const { config, state } = await manager.streams.info(stream);
    const floor = await floorOf(state.last_seq);
    const met = this.#known.get(stream) ?? { config: { ...config }, coverage: new Coverage(floor) };
    this.#known.set(stream, met);
    await this.#files.append([this.#about(stream)]);
    return met;
  }

  #about(stream: string): TailStream {
    const { config, coverage } = this.#known.get(stream)!;
    return { kind: "stream", stream, config, floor: coverage.floor };
  }

  async made(stream: string): Promise<void> {
    await this.#knownOf(stream, await this.#openWriter());
  }

  async ready(): Promise<void> {
    await this.#until(() => this.#sameServer());
  }

  async #openWriter(): Promise<NatsConnection> {
    return await this.#until(() => this.#writer);
  }

  /** What readers are connected to is what was put in order: its writer. */
  #sameServer(): NatsConnection | undefined {
    const server = this.#options.connection.info?.server_id;
    return this.#writer?.info?.server_id === server ? this.#writer : undefined;
  }

  async #until<T>(holds: () => T | undefined): Promise<T> {
    const { clock } = this.#options;
    const giveUpAtMs = clock.monotonicMs() + PATIENCE_MS;
    for (;;) {
      const found = holds();
      if (found !== undefined) return found;
      const leftMs = giveUpAtMs - clock.monotonicMs();
      if (leftMs <= 0 || this.#stop.signal.aborted) throw this.#away();
      await new Promise<void>((resolve) => {
        const timer = clock.after(leftMs, resolve);
        this.#waiters.push(() => {
          timer.cancel();
          resolve();
        });
      });
    }
  }

  #wake(): void {
    for (const wake of this.#waiters.splice(0)) wake();
  }

  #away(): InsituError {
    const { message } = this.#trouble ?? {
      message: "NATS is away, or what it may have lost is not back in its place yet",
    };
    return new InsituError("store.unavailable", message, {
      retryable: true,
      ...(this.#trouble ? { cause: this.#trouble } : {}),
    });
  }

  async #during<T>(stream: string, act: () => Promise<T>): Promise<T> {
    const under = this.#underWay.get(stream) ?? new Set();
    this.#underWay.set(stream, under);
    const done = act();
    under.add(done);
    try {
      return await done;
    } finally {
      under.delete(done);
    }
  }

  async #settled(): Promise<void> {
    await Promise.allSettled([...this.#underWay.values()].flatMap((set) => [...set]));
  }

  /** A connection that ends is replaced; when another server answers, what it lacks is put back first. */
  async #follow(): Promise<void> {
    const { clock, log } = this.#options;
    const { signal } = this.#stop;
    while (!signal.aborted) {
      await this.#writer?.closed();
      this.#writer = undefined;
      this.#seenAtMs = undefined;
      if (signal.aborted) return;
      try {
        await this.#settled();
        await this.#open();
        this.#telling = Promise.all([
          this.#telling,
          ...[...this.#onRestored].map((each) => this.#tell(each)),
        ]);
      } catch (thrown) {
        const err = InsituError.from(thrown);
        const told = this.#trouble?.message === err.message;
        if (!err.retryable && !told)
          log.error({ err }, "nothing is published until NATS has back what it lost");
        else log.debug({ err }, "NATS not ready yet; trying again");
        this.#trouble = err.retryable ? undefined : err;
        await clock.sleep(REDIAL_MS, signal).catch(() => {}); // closed, which the loop sees
      }
    }
  }

  async #tell(listener: () => Promise<void>): Promise<void> {
    const { clock, log } = this.#options;
    const { signal } = this.#stop;
    while (!signal.aborted) {
      try {
        await this.ready();
        return await listener();
      } catch (err) {
        if (signal.aborted) return;
        log.warn({ err }, "what hangs on the streams is not back yet; trying again");
        await clock.sleep(TELL_AGAIN_MS, signal).catch(() => {}); // closed, which the loop sees
      }
    }
  }

  async #open(): Promise<void> {
    const writer = await this.#options.dial();
    try {
      const server = writer.info!.server_id;
      if (server !== this.#restoredOn) await this.#restore(writer);
      this.#restoredOn = server;
    } catch (err) {
      await writer.close();
      throw storeError(err, "what NATS may have lost");
    }
    this.#trouble = undefined;
    this.#writer = writer;
    this.#wake();
  }

  async #restore(connection: NatsConnection): Promise<void> {
    const { clock, log, replicaId, peersMaxMs } = this.#options;
    const manager = await connection.jetstreamManager({ checkAPI: false, timeout: READ_TIMEOUT_MS });
    await manager.getAccountInfo(); // JetStream may still be starting
    await refuseHalfRestored(manager);
    const held = await this.#held();
    await ensureKeepers(connection);
    const keepers = new Keepers({
      connection,
      replicaId,
      clock,
      log,
      signal: this.#stop.signal,
      ...(peersMaxMs === undefined ? {} : { peersMaxMs }),
    });
    const world = { connection, manager, read: this.#files.read.bind(this.#files) };
    let lost = 0;
    const onLost = async (message: LostMessage): Promise<void> => {
      lost += 1;
      await this.#noteLost(message);
    };
    const order = (stream: string): StreamRestore =>
      new StreamRestore(
        { ...world, onLost, keepers: stream === TAIL_KEEPERS ? undefined : keepers },
        held.get(stream)!,
      );
    const parts: StreamRestore[] = [];
    if (held.has(TAIL_KEEPERS)) parts.push(await begun(order(TAIL_KEEPERS)));
    await parts[0]?.run();
    const next = new Map<string, number>();
    const others = [...held.keys()].filter((stream) => stream !== TAIL_KEEPERS);
    const rest = others.map(order);
    for (const [at, part] of rest.entries()) {
      const first = await part.begin();
      if (first !== undefined) next.set(others[at]!, first);
    }
    await keepers.begin(next);
    await Promise.all(rest.map((part) => part.run()));
    await keepers.finish();
    await this.#look(connection);
    const restored = [...parts, ...rest].reduce((sum, part) => sum + part.restored, 0);
    if (restored + lost > 0)
      log.warn({ restored, lost }, "NATS had lost what it acknowledged; put back from the copy");
  }

  /** What is in the files, and from now on as young as if it had just been written. */
  async #held(): Promise<Map<string, HeldStream>> {
    const files = await this.#turn();
    for (const file of files) this.#closedAtMs.set(file, this.#servedMs);
    const held = new Map<string, HeldStream & { bySeq: Map<number, Piece> }>();
    await this.#files.scan((record, place) => {
      if (record.kind === "batch") return;
      const { stream } = record;
      const of = held.get(stream) ?? { stream, config: {}, floor: 0, pieces: [], bySeq: new Map() };
      held.set(stream, of);
      if (record.kind === "stream") {
        of.config = record.config;
        of.floor = Math.max(of.floor, record.floor);
        return;
      }
      const { seq, subject } = record;
      of.bySeq.set(seq, { seq, subject, messageId: headerOf(record, "Nats-Msg-Id"), place });
      this.#noteLast(place.file, stream, seq);
    });
    for (const of of held.values()) {
      const kept = [...of.bySeq.values()].filter(({ seq }) => seq > of.floor);
      of.pieces = kept.sort((a, b) => a.seq - b.seq);
      this.#learn(of);
    }
    return held;
  }

  #learn({ stream, config, floor, pieces }: HeldStream): void {
    if (this.#known.has(stream)) return;
    const coverage = new Coverage(floor);
    for (const { seq } of pieces) coverage.add(seq);
    this.#known.set(stream, { config, coverage });
  }

  /** What is stored and in no copy, like what an earlier process had no answer for, is acted on from now on. */
  async #look(writer: NatsConnection): Promise<void> {
    const manager = await writer.jetstreamManager({ checkAPI: false, timeout: READ_TIMEOUT_MS });
    for (const stream of [...NAMES, TAIL_KEEPERS]) {
      const info = await manager.streams.info(stream).catch((err: unknown) => {
        if (errorCode(err) === STREAM_NOT_FOUND) return undefined;
        throw err;
      });
      if (!info) continue;
      const floorOf = (lastSeq: number): Promise<number> =>
        UNCOPIED.has(stream) ? Promise.resolve(lastSeq) : this.#floorOf(stream, lastSeq, writer);
      const { coverage } = this.#known.get(stream) ?? (await this.#meet(stream, writer, floorOf));
      if (UNCOPIED.has(stream)) continue;
      for (;;) {
        const missing = coverage.missing(info.state.last_seq, FETCH_MAX);
        if (missing.length === 0) break;
        await this.#fetch(stream, missing, writer);
      }
    }
  }

  /** Below it is what NATS has had for so long that it is on its disk. */
  async #floorOf(stream: string, lastSeq: number, writer: NatsConnection): Promise<number> {
    const since = this.#options.clock.wallMs() - (this.#options.keepMs ?? KEEP_MS);
    for (let seq = lastSeq; seq > Math.max(0, lastSeq - LOOK_BACK_MAX); seq--) {
      const message = await messageAt(writer, stream, seq);
      if (message && message.atMs < since) return seq;
    }
    return Math.max(0, lastSeq - LOOK_BACK_MAX);
  }

  async #tick(): Promise<void> {
    const writer = this.#writer;
    if (!writer) return;
    const { clock, log } = this.#options;
    try {
      await writer.flush();
      const nowMs = clock.monotonicMs();
      this.#servedMs += nowMs - (this.#seenAtMs ?? nowMs);
      this.#seenAtMs = nowMs;
      await this.#sayThatWeAreHere();
      const { newest } = this.#files;
      if ((newest?.bytes ?? 0) < FILE_MAX_BYTES && nowMs - this.#turnedAtMs < FILE_MAX_MS) return;
      this.#turnedAtMs = nowMs;
      await this.dropOld();
    } catch (err) {
      log.debug({ err }, "nothing of the copy is dropped now");
    }
  }

  /** Begins a new file, and drops those that are old enough. From time to time by itself. */
  async dropOld(): Promise<void> {
    await this.#turn();
    const { keepMs = KEEP_MS } = this.#options;
    const old = [...this.#closedAtMs].filter(([, atMs]) => this.#servedMs - atMs >= keepMs);
    await this.#drop(old.map(([file]) => file));
  }

  async #turn(): Promise<readonly number[]> {
    const files = await this.#files.turn();
    for (const file of files) if (!this.#closedAtMs.has(file)) this.#closedAtMs.set(file, this.#servedMs);
    return files;
  }

  /** First it is on the disk that they do not count any more. */
  async #drop(files: readonly number[]): Promise<void> {
    if (files.length === 0) return;
    for (const file of files)
      for (const [stream, seq] of this.#lastSeqs.get(file) ?? [])
        this.#known.get(stream)?.coverage.raiseFloor(seq);
    await this.#files.append([...this.#known.keys()].map((stream): TailRecord => this.#about(stream)));
    for (const file of files) {
      await this.#files.remove(file);
      this.#closedAtMs.delete(file);
      this.#lastSeqs.delete(file);
    }
  }

  /** So that the others wait for us after a restart of NATS, and we for them. */
  async #sayThatWeAreHere(): Promise<void> {
    const { connection, clock, replicaId } = this.#options;
    const world = { connection, clock, patienceMs: KEEPER_PATIENCE_MS };
    const said = await publish(world, {
      what: "sign of life of the copy",
      stream: TAIL_KEEPERS,
      subject: subjects.tailKeeper(replicaId),
      payload: "",
      messageId: `${replicaId}/${clock.wallMs()}`,
    });
    if (said.kind === "stored") await this.flush(TAIL_KEEPERS, said.seq);
  }

  async #noteLost(message: LostMessage): Promise<void> {
    const { data: _data, ...about } = message;
    const directory = join(this.#options.directory, "lost");
    await mkdir(directory, { recursive: true, mode: 0o700 });
    const file = join(directory, `${message.stream}-${message.seq}.json`);
    try {
      const handle = await open(file, "wx", 0o600);
      await handle.writeFile(`${JSON.stringify(message)}\n`);
      await handle.sync().finally(() => handle.close());
    } catch (err) {
      if ((err as NodeJS.ErrnoException).code !== "EEXIST") throw err;
      return; // told by an earlier start
    }
    this.#options.log.error({ ...about, file }, "acknowledged, and lost by NATS for good");
  }
}

async function begun(part: StreamRestore): Promise<StreamRestore> {
  await part.begin();
  return part;
}

function headerOf({ headers }: TailMessage, wanted: string): string {
  return headers.find(([name]) => name === wanted)?.[1] ?? "";
}

function messageOf(message: Publication, seq: number): TailMessage {
  const { stream, subject, payload, messageId, headers = {}, expected } = message;
  const all: TailMessage["headers"] = [["Nats-Msg-Id", messageId], ...Object.entries(headers)];
  if (expected && "ofSubject" in expected)
    all.push(["Nats-Expected-Last-Subject-Sequence", String(expected.ofSubject)]);
  const data = typeof payload === "string" ? Buffer.from(payload) : payload;
  return { kind: "message", stream, seq, subject, headers: all, data };
}

async function messageAt(
  connection: NatsConnection,
  stream: string,
  seq: number,
): Promise<{ record: TailMessage; atMs: number } | undefined> {
  try {
    const manager = await connection.jetstreamManager({ checkAPI: false, timeout: READ_TIMEOUT_MS });
    const found = await manager.streams.getMessage(stream, { seq });
    const headers = [...found.header].flatMap(([name, values]) =>
      values.map((value): [string, string] => [name, value]),
    );
    const { subject, data } = found;
    return { record: { kind: "message", stream, seq, subject, headers, data }, atMs: found.time.getTime() };
  } catch (err) {
    if (GONE.has(errorCode(err))) return undefined;
    throw err;
  }
}
