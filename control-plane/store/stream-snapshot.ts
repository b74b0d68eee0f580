/** Streams as a whole, out of JetStream and into it: the server's own snapshots, in pieces. */
import { createInbox, type Msg, type NatsConnection } from "nats";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";

/** The server's own choice too. Every server takes messages of this size. */
const PIECE_BYTES = 128 * 1024;
/** The server sends on when nobody says that it has got something: a disk that is slower than this is told so. */
const WAITING_MAX_BYTES = 256 * 1024 * 1024;
const ANSWER_TIMEOUT_MS = 30_000;
/** Between two pieces, and for a stream that is being opened. */
const SILENCE_MAX_MS = 60_000;
const STREAM_NOT_FOUND = 10_059;

const Failed = z.object({ error: z.object({ err_code: z.int().optional(), description: z.string() }) });
const State = z.looseObject({ messages: z.int(), bytes: z.int(), first_seq: z.int(), last_seq: z.int() });
const Taken = z.object({ config: z.looseObject({ name: z.string() }), state: State });
const Opened = z.object({ deliver_subject: z.string() });
const Created = z.object({ state: State });

export type StreamState = z.infer<typeof State>;
export interface StreamSnapshot {
  config: Record<string, unknown>;
  state: StreamState;
  pieces(): AsyncGenerator<Uint8Array>;
}

/**
 * Begins a snapshot; undefined when there is no such stream. Its pieces are to be read at once, to their end.
 *
 * The connection must not reconnect by itself: pieces that are lost meanwhile are not sent again.
 */
export async function takeSnapshot(
  connection: NatsConnection,
  clock: Clock,
  stream: string,
): Promise<StreamSnapshot | undefined> {
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
  const request = { deliver_subject: inbox, no_consumers: true, chunk_size: PIECE_BYTES };
  const answer = await ask(connection, `$JS.API.STREAM.SNAPSHOT.${stream}`, JSON.stringify(request), stream);
  const failed = Failed.safeParse(answer);
  if (failed.success) {
    subscription.unsubscribe();
    if (failed.data.error.err_code === STREAM_NOT_FOUND) return undefined;
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
  connection: NatsConnection,
  config: Record<string, unknown> & { name: string },
  state: Record<string, unknown>,
  pieces: AsyncIterable<Uint8Array>,
): Promise<StreamState> {
  const { name } = config;
  const subject = `$JS.API.STREAM.RESTORE.${name}`;
  const answer = await ask(connection, subject, JSON.stringify({ config, state }), name);
  const failed = Failed.safeParse(answer);
  if (failed.success) throw refused(name, "takes no snapshot", failed.data.error.description);
  const { deliver_subject: to } = Opened.parse(answer);
  for await (const piece of pieces) {
    for (let at = 0; at < piece.length; at += PIECE_BYTES)
      await send(connection, to, piece.subarray(at, at + PIECE_BYTES), name);
  }
  const end = JSON.parse((await send(connection, to, new Uint8Array(), name)).string()) as unknown;
  const broken = Failed.safeParse(end);
  if (broken.success) throw refused(name, "was not restored", broken.data.error.description);
  return Created.parse(end).state;
}

async function ask(
  connection: NatsConnection,
  subject: string,
  body: string,
  stream: string,
): Promise<unknown> {
  try {
    return (await connection.request(subject, body, { timeout: ANSWER_TIMEOUT_MS })).json();
  } catch (err) {
    throw lost(stream, err);
  }
}

async function send(connection: NatsConnection, to: string, piece: Uint8Array, stream: string): Promise<Msg> {
  try {
    return await connection.request(to, piece, { timeout: SILENCE_MAX_MS });
  } catch (err) {
    throw lost(stream, err);
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
