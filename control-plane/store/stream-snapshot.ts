/** Streams as a whole, out of JetStream and into it: the server's own snapshots, in pieces. */
import { createInbox, ErrorCode, type Msg, type NatsConnection, NatsError } from "nats";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import { errorCode, STREAM_NOT_FOUND } from "./jetstream.ts";

/** The server's own choice too. Every server takes messages of this size. */
const PIECE_BYTES = 128 * 1024;
/** The server sends on when nobody says that it has got something: a disk that is slower than this is told so. */
const WAITING_MAX_BYTES = 256 * 1024 * 1024;
const ANSWER_TIMEOUT_MS = 30_000;
/** Between two pieces, and for a stream that is being opened. */
const SILENCE_MAX_MS = 60_000;
/** The server unpacks and reads the whole stream before it says that it is there. */
const BUILT_WITHIN_MS = 15 * 60_000;
const HEARD_WITHIN_MS = 10_000;
const HEARD_POLL_MS = 50;

const Failed = z.object({ error: z.object({ description: z.string() }) });
const State = z.looseObject({ messages: z.int(), bytes: z.int(), first_seq: z.int(), last_seq: z.int() });
const Taken = z.object({ config: z.looseObject({ name: z.string() }), state: State });
const Opened = z.object({ deliver_subject: z.string() });
const Created = z.object({ state: State });

/** The connection must not reconnect by itself: pieces that are lost meanwhile are not sent again. */
interface Line {
  connection: NatsConnection;
  clock: Clock;
}

export type StreamState = z.infer<typeof State>;
export interface StreamSnapshot {
  config: Record<string, unknown>;
  state: StreamState;
  pieces(): AsyncGenerator<Uint8Array>;
}

/** Begins a snapshot; undefined when there is no such stream. Its pieces are to be read at once, to their end. */
export async function takeSnapshot(line: Line, stream: string): Promise<StreamSnapshot | undefined> {
  const { connection, clock } = line;
  // In a cluster nobody answers for a stream that is not there, but to this.
  if (!(await isThere(connection, stream))) return undefined;
  const inbox = createInbox();
  const queue: Msg[] = [];
  let waitingBytes = 0;
  let wake = (): void => {};
  const subscription = connection.subscribe(inbox, {
    callback: (_err, message) => {
      queue.push(message);
      waitingBytes += message.data.length;
      wake();
    },
  });
  // Closed under us: the wait for the next piece ends at once.
  let closed = false;
  void connection.closed().then(() => {
    closed = true;
    wake();
  });
  const wanted = { deliver_subject: inbox, no_consumers: true, chunk_size: PIECE_BYTES };
  const asked = { stream, timeoutMs: ANSWER_TIMEOUT_MS };
  const answer = (
    await request(line, `$JS.API.STREAM.SNAPSHOT.${stream}`, JSON.stringify(wanted), asked)
  ).json();
  const failed = Failed.safeParse(answer);
  if (failed.success) {
    subscription.unsubscribe();
    throw refused(stream, "gives no snapshot", failed.data.error.description);
  }
  const { config, state } = Taken.parse(answer);
  async function next(): Promise<Msg> {
    const silent = clock.monotonicMs() + SILENCE_MAX_MS;
    while (queue.length === 0) {
      if (closed) throw lost(stream);
      if (clock.monotonicMs() >= silent)
        throw refused(stream, "stopped sending", `nothing for ${SILENCE_MAX_MS / 1_000} s`);
      await new Promise<void>((resolve) => {
        const timer = clock.after(SILENCE_MAX_MS, resolve);
        wake = () => {
          timer.cancel();
          resolve();
        };
      });
    }
    return queue.shift()!;
  }
  async function* pieces(): AsyncGenerator<Uint8Array> {
    try {
      for (let count = 1; ; count++) {
        const message = await next();
        if (message.data.length === 0) {
          const { headers } = message;
          if (headers && headers.code >= 400)
            throw refused(stream, "gave up its snapshot", headers.description);
          return;
        }
        // The subject of the acknowledgement ends with the number of the piece.
        if (message.reply && Number(message.reply.slice(message.reply.lastIndexOf(".") + 1)) !== count)
          throw refused(stream, "lost a piece of its snapshot", `number ${count}`);
        waitingBytes -= message.data.length;
        if (waitingBytes > WAITING_MAX_BYTES)
          throw new InsituError(
            "limit.exceeded",
            `the disk of the backup is too slow for the stream ${stream}: ${WAITING_MAX_BYTES} bytes wait to be written`,
          );
        yield message.data;
        // After it was written: the server sends no faster than the disk takes it.
        message.respond();
      }
    } finally {
      subscription.unsubscribe();
    }
  }
  return { config, state, pieces };
}

/**
 * Makes the stream from the pieces of its snapshot. Gives its state.
 *
 * @throws store.unavailable, conflict when the server refuses; the stream is then not there
 */
export async function restoreSnapshot(
  line: Line,
  config: Record<string, unknown> & { name: string },
  state: Record<string, unknown>,
  pieces: AsyncIterable<Uint8Array>,
): Promise<StreamState> {
  const { name } = config;
  const subject = `$JS.API.STREAM.RESTORE.${name}`;
  const about = { stream: name, timeoutMs: ANSWER_TIMEOUT_MS };
  const answer = (await request(line, subject, JSON.stringify({ config, state }), about)).json();
  const failed = Failed.safeParse(answer);
  if (failed.success) throw refused(name, "takes no snapshot", failed.data.error.description);
  const { deliver_subject: to } = Opened.parse(answer);
  for await (const piece of pieces) {
    for (let at = 0; at < piece.length; at += PIECE_BYTES)
      await request(line, to, piece.subarray(at, at + PIECE_BYTES), about);
  }
  const end = (await request(line, to, new Uint8Array(), { ...about, timeoutMs: BUILT_WITHIN_MS })).json();
  const broken = Failed.safeParse(end);
  if (broken.success) throw refused(name, "was not restored", broken.data.error.description);
  return Created.parse(end).state;
}

async function isThere(connection: NatsConnection, stream: string): Promise<boolean> {
  try {
    await (await connection.jetstreamManager({ checkAPI: false })).streams.info(stream);
    return true;
  } catch (err) {
    if (errorCode(err) === STREAM_NOT_FOUND) return false;
    throw lost(stream, err);
  }
}

/** In a cluster, who is to answer may not be known yet to the server that is asked: nobody got it then, so again. */
async function request(
  { connection, clock }: Line,
  subject: string,
  body: Uint8Array | string,
  about: { stream: string; timeoutMs: number },
): Promise<Msg> {
  const giveUpAtMs = clock.monotonicMs() + HEARD_WITHIN_MS;
  for (;;) {
    try {
      return await connection.request(subject, body, { timeout: about.timeoutMs });
    } catch (err) {
      const unheard = err instanceof NatsError && err.code === ErrorCode.NoResponders;
      if (!unheard || clock.monotonicMs() > giveUpAtMs) throw lost(about.stream, err);
      await clock.sleep(HEARD_POLL_MS);
    }
  }
}

function lost(stream: string, cause?: unknown): InsituError {
  const why = cause instanceof Error ? ` (${cause.message})` : "";
  return new InsituError(
    "store.unavailable",
    `NATS went away while the stream ${stream} was copied${why}; try again`,
    {
      retryable: true,
      cause,
    },
  );
}

function refused(stream: string, what: string, why: string): InsituError {
  return new InsituError("store.unavailable", `the stream ${stream} ${what}: NATS says "${why}"`, {
    retryable: true,
  });
}
