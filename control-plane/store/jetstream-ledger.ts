/** The ledger's leaves on the stream `LEDGER`: one message a leaf, compare-and-set on the whole stream. */
import type { NatsConnection } from "nats";
import { InsituError } from "../../shared/errors.ts";
import { entryBytes, type LedgerEntry, parseEntry } from "../../shared/provenance/ledger-entry.ts";
import { STREAMS, subjects } from "../../shared/wire/subjects.ts";
import type { LedgerSource, LedgerStore, StoredLeaf } from "../evidence/ports.ts";
import { lastMessageOf } from "./jetstream.ts";
import { publishOnce } from "./publish.ts";
import { flushed, readable } from "./stream-disk.ts";
import { readToEnd } from "./stream-reader.ts";

export class JetStreamLedger implements LedgerStore {
  readonly #connection: NatsConnection;

  constructor(connection: NatsConnection) {
    this.#connection = connection;
  }

  async size(): Promise<number> {
    return (await this.#last(subjects.allLedger))?.seq ?? 0;
  }

  async lastOf(source: LedgerSource): Promise<LedgerEntry | undefined> {
    const message = await this.#last(subjects.ledger(source));
    if (!message) return undefined;
    const entry = parseEntry(message.data);
    if (entry) return entry;
    throw new InsituError(
      "ledger.forked",
      `message ${message.seq} of ${STREAMS.ledger} is no leaf of this release`,
    );
  }

  /** At the same time: the server takes each only behind the one before, so one that is lost stops all that follow. */
  async append(entries: readonly LedgerEntry[], size: number): Promise<"appended" | "conflict"> {
    const stored = await Promise.all(
      entries.map((entry, i) =>
        publishOnce(this.#connection, {
          what: `leaf ${size + i} of the ledger`,
          stream: STREAMS.ledger,
          subject: subjects.ledger(entry.source.stream),
          payload: entryBytes(entry),
          messageId: `${entry.source.stream}/${entry.source.seq}/${entry.source.part}`,
          expected: { ofStream: size + i },
        }),
      ),
    );
    // The repeat of one that is there already is answered with its place.
    const placed = stored.every((one, i) => one.kind === "stored" && one.seq === size + i + 1);
    return placed ? "appended" : "conflict";
  }

  /** On the disk, and not as it was before NATS lost something. */
  async #last(subject: string): Promise<{ seq: number; data: Uint8Array } | undefined> {
    await readable(this.#connection);
    const message = await lastMessageOf(this.#connection, STREAMS.ledger, subject);
    await flushed(this.#connection, STREAMS.ledger, message?.seq ?? 0);
    return message;
  }

  async *leavesOf(source: LedgerSource, afterIndex: number): AsyncGenerator<StoredLeaf> {
    const filter = subjects.ledger(source);
    const from = { connection: this.#connection, stream: STREAMS.ledger, filter, fromSeq: afterIndex + 2 };
    for await (const { seq, data } of readToEnd(from))
      yield { index: seq - 1, bytes: data, entry: parseEntry(data) };
  }

  async durable(size: number): Promise<void> {
    await flushed(this.#connection, STREAMS.ledger, size);
  }
}
