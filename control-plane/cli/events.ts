/** A run's events as the server sends them, over as many connections as it takes. */
import { createParser, type EventSourceMessage } from "eventsource-parser";
import type { RunEventBatch } from "../../shared/engine/events.ts";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import type { Problem } from "../api/schemas.ts";
import type { HttpTransport } from "./http.ts";

export interface RunBatch {
  seq: number;
  batch: RunEventBatch;
}

const RETRY_FIRST_MS = 200;
const RETRY_MAX_MS = 3_000;
/** The server sends a comment every 15 s; three missed ones mean a dead connection that nobody closed. */
const SILENCE_MAX_MS = 45_000;

/**
 * Ends when the run has. A server that is away is waited for until `signal` aborts; `onConnection` hears of it.
 *
 * @throws InsituError when the server refuses, for example `not-found`
 */
export async function* followEvents(
  http: HttpTransport,
  runId: string,
  afterSeq: number,
  options: { signal: AbortSignal; clock: Clock; onConnection?: (up: boolean) => void },
): AsyncGenerator<RunBatch, void> {
  const { signal, clock, onConnection } = options;
  let last = afterSeq;
  let failures = 0;
  let connectedOnce = false;
  for (;;) {
    try {
      for await (const message of messages(http, runId, last, options)) {
        if (message === "open") {
          connectedOnce = true;
          if (failures > 0) onConnection?.(true);
          failures = 0;
          continue;
        }
        if (message.event === "end") return;
        if (message.event === "problem") throw problemOf(message.data);
        const seq = Number(message.id);
        if (!Number.isInteger(seq) || seq <= last) continue; // a repeat
        last = seq;
        yield { seq, batch: JSON.parse(message.data) as RunEventBatch };
      }
    } catch (thrown) {
      signal.throwIfAborted();
      const error = InsituError.from(thrown);
      const away =
        error.retryable ||
        ["unreachable", "unavailable", "store.unavailable", "timeout"].includes(error.code);
      if (!away || !connectedOnce) throw error;
    }
    if (failures === 0) onConnection?.(false);
    await clock.sleep(Math.min(RETRY_MAX_MS, RETRY_FIRST_MS * 2 ** failures), signal);
    failures += 1;
  }
}

async function* messages(
  http: HttpTransport,
  runId: string,
  last: number,
  { signal, clock }: { signal: AbortSignal; clock: Clock },
): AsyncGenerator<EventSourceMessage | "open", void> {
  const { body } = await http.open({
    method: "GET",
    path: `/v1/runs/${encodeURIComponent(runId)}/events`,
    headers: { accept: "text/event-stream", "last-event-id": String(last) },
    signal,
  });
  const queue: EventSourceMessage[] = [];
  const parser = createParser({ onEvent: (event) => queue.push(event) });
  const decoder = new TextDecoder();
  const dead = () => body.destroy(new InsituError("unreachable", "the event stream fell silent"));
  let silence = clock.after(SILENCE_MAX_MS, dead);
  try {
    yield "open";
    for await (const chunk of body) {
      silence.cancel();
      silence = clock.after(SILENCE_MAX_MS, dead);
      parser.feed(decoder.decode(chunk as Uint8Array, { stream: true }));
      yield* queue.splice(0);
    }
  } catch (thrown) {
    if (thrown instanceof InsituError) throw thrown;
    throw new InsituError("unreachable", "the event stream broke off", { cause: thrown, retryable: true });
  } finally {
    silence.cancel();
    body.destroy();
  }
}

function problemOf(data: string): InsituError {
  const problem = JSON.parse(data) as Problem;
  return new InsituError("unavailable", problem.detail, { retryable: problem.retryable === true });
}
