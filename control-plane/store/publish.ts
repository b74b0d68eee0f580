/**
 * Publishes to a stream so that an answer that stays away does no harm: every try has the same message id, and
 * whether a try before has arrived is looked up where the server does not tell.
 */
import { type MsgHdrs, type NatsConnection, headers as newHeaders, type StoredMsg } from "nats";
import type { Clock } from "../../shared/system.ts";
import {
  errorCode,
  isFull,
  NO_MESSAGE_FOUND,
  passes,
  READ_TIMEOUT_MS,
  storeError,
  WRONG_LAST_SEQUENCE,
} from "./jetstream.ts";
import { stored } from "./stream-disk.ts";
import { noteWrite } from "./write-health.ts";

/** Of one try. The servers of a cluster elect a leader in 4 s and more: what was asked before is lost by then. */
const TRY_TIMEOUT_MS = 3_000;
const TRY_AGAIN_MS = 100;
/** Of what waits for room in a stream there may be thousands. */
const FULL_AGAIN_MS = 1_000;

export interface Publication {
  /** What it is, for people. */
  what: string;
  stream: string;
  subject: string;
  payload: Uint8Array | string;
  messageId: string;
  headers?: Record<string, string>;
  /** Sequence that the subject must have, or the stream; 0: none yet. */
  expected?: { ofSubject: number } | { ofStream: number };
  /** It is made again when a power cut takes it: nobody waits for the disk. */
  mayBeLost?: boolean;
}

export type Published = { kind: "stored"; seq: number } | { kind: "conflict" };

/**
 * Tries for `patienceMs` while the store does not answer.
 *
 * @throws store.unavailable (retryable) when no answer came: it may be stored or not; ask again with the same id
 */
export async function publish(
  { connection, clock, patienceMs }: { connection: NatsConnection; clock: Clock; patienceMs: number },
  message: Publication,
): Promise<Published> {
  const giveUpAtMs = clock.monotonicMs() + patienceMs;
  for (;;) {
    try {
      return await publishOnce(connection, message);
    } catch (err) {
      if (!passes(err) || clock.monotonicMs() >= giveUpAtMs) throw err;
      await clock.sleep(isFull(err) ? FULL_AGAIN_MS : TRY_AGAIN_MS);
    }
  }
}

/** One try, for callers that try again themselves. @throws as `publish` */
export async function publishOnce(connection: NatsConnection, message: Publication): Promise<Published> {
  try {
    const published = await stored(connection, message, (over) => tryOnce(over, message));
    noteWrite(connection, message.stream);
    return published;
  } catch (err) {
    noteWrite(connection, message.stream, err);
    throw storeError(err, message.what);
  }
}

async function tryOnce(connection: NatsConnection, message: Publication): Promise<Published> {
  const { stream, subject, payload, messageId, expected } = message;
  try {
    const ack = await connection.jetstream().publish(subject, payload, {
      msgID: messageId,
      headers: headersOf(message),
      expect: { streamName: stream, ...expectation(expected) },
      timeout: TRY_TIMEOUT_MS,
    });
    return { kind: "stored", seq: ack.seq };
  } catch (err) {
    if (expected === undefined || errorCode(err) !== WRONG_LAST_SEQUENCE) throw err;
    // A try before may be what has moved the sequence on. Servers up to 2.9 answer the repeat by its message id;
    // newer ones look at the expectation first.
    const after = "ofSubject" in expected ? expected.ofSubject : expected.ofStream;
    const next = await nextMessage(connection, { stream, subject, fromSeq: after + 1 });
    return next?.header.get("Nats-Msg-Id") === messageId
      ? { kind: "stored", seq: next.seq }
      : { kind: "conflict" };
  }
}

/** The first message of the subject from a sequence on, as the stream's leader has it. */
export async function nextMessage(
  connection: NatsConnection,
  at: { stream: string; subject: string; fromSeq: number },
): Promise<StoredMsg | undefined> {
  try {
    const manager = await connection.jetstreamManager({ checkAPI: false, timeout: READ_TIMEOUT_MS });
    const query = { seq: at.fromSeq, next_by_subj: at.subject };
    return await manager.streams.getMessage(at.stream, query);
  } catch (err) {
    if (errorCode(err) === NO_MESSAGE_FOUND) return undefined;
    throw err;
  }
}

function headersOf({ headers = {} }: Publication): MsgHdrs {
  const head = newHeaders();
  for (const [name, value] of Object.entries(headers)) head.set(name, value);
  return head;
}

function expectation(expected: Publication["expected"]) {
  if (expected === undefined) return {};
  return "ofSubject" in expected
    ? { lastSubjectSequence: expected.ofSubject }
    : { lastSequence: expected.ofStream };
}
