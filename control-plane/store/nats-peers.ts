/** How replicas talk to each other: core NATS, JSON, nothing stored. */
import type { Msg, NatsConnection } from "nats";
import type { Logger } from "pino";
import { ERROR_CODES, type ErrorCode, InsituError } from "../../shared/errors.ts";
import { subjects } from "../../shared/wire/subjects.ts";
import type { PeerBus } from "../shards/ports.ts";

interface Envelope {
  from: string;
  message: unknown;
}

type Answer =
  | { ok: unknown }
  | { error: { code: string; message: string; retryable: boolean; details: Record<string, unknown> } };

export class NatsPeers implements PeerBus {
  readonly #connection: NatsConnection;
  readonly #replicaId: string;
  readonly #log: Logger;

  constructor(connection: NatsConnection, replicaId: string, log: Logger) {
    this.#connection = connection;
    this.#replicaId = replicaId;
    this.#log = log;
  }

  /** Messages of others, until the connection closes. What `onRequest` throws goes back to who asked. */
  start(handlers: {
    onMessage(message: unknown): void;
    onRequest(message: unknown): Promise<unknown>;
  }): void {
    const receive = (err: Error | null, raw: Msg): void => {
      if (err !== null) return;
      try {
        const { from, message } = raw.json<Envelope>();
        if (from === this.#replicaId) return;
        if (raw.reply) void this.#answer(raw, handlers.onRequest(message));
        else handlers.onMessage(message);
      } catch (thrown) {
        this.#log.warn({ err: thrown, subject: raw.subject }, "message of another replica not understood");
      }
    };
    this.#connection.subscribe(subjects.replica(this.#replicaId), { callback: receive });
    this.#connection.subscribe(subjects.allReplicas, { callback: receive });
  }

  broadcast(message: unknown): void {
    this.#publish(subjects.allReplicas, message);
  }

  send(replica: string, message: unknown): void {
    this.#publish(subjects.replica(replica), message);
  }

  async request(replica: string, message: unknown, timeoutMs: number): Promise<unknown> {
    let answer: Answer;
    try {
      const raw = await this.#connection.request(subjects.replica(replica), this.#envelope(message), {
        timeout: timeoutMs,
      });
      answer = raw.json<Answer>();
    } catch (err) {
      throw new InsituError("unavailable", `replica ${replica} does not answer`, {
        retryable: true,
        cause: err,
      });
    }
    if ("ok" in answer) return answer.ok;
    const { code, message: text, retryable, details } = answer.error;
    const known = ERROR_CODES.includes(code as ErrorCode) ? (code as ErrorCode) : "internal";
    throw new InsituError(known, text, { retryable, details });
  }

  async #answer(raw: Msg, work: Promise<unknown>): Promise<void> {
    const answer: Answer = await work.then(
      (ok) => ({ ok }),
      (thrown: unknown) => {
        const { code, message, retryable, details } = InsituError.from(thrown);
        return { error: { code, message, retryable, details: { ...details } } };
      },
    );
    raw.respond(JSON.stringify(answer));
  }

  #publish(subject: string, message: unknown): void {
    if (!this.#connection.isClosed()) this.#connection.publish(subject, this.#envelope(message));
  }

  #envelope(message: unknown): string {
    const envelope: Envelope = { from: this.#replicaId, message };
    return JSON.stringify(envelope);
  }
}
