/** Bodies that grow while they are sent. The reader sets the pace: nothing is taken from a source before it is wanted. */
import type { RunEventBatch } from "../../shared/engine/events.ts";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import { untilAborted } from "../../shared/until-aborted.ts";
import { problemOf } from "./problem.ts";
import type { LogLine } from "./schemas.ts";

/** Log entries are gathered up to this many characters while more are at hand. */
const CHUNK_MIN_CHARS = 64 * 1024;

/**
 * A body of the texts that `frames` yields. Its signal aborts when the reader leaves, or with any of `signals`.
 * An error cuts the connection, so that half an answer is never taken for a whole one: by `cut` when the server
 * gives one, which is quiet; else by failing the body.
 */
export function bodyOf(
  frames: (signal: AbortSignal) => AsyncGenerator<string, void>,
  { signals, cut }: { signals: readonly AbortSignal[]; cut: ((err: unknown) => boolean) | undefined },
): ReadableStream<Uint8Array> {
  const scope = new AbortController();
  const onAbort = () => scope.abort(new InsituError("cancelled", "the stream was closed from outside"));
  const letGo = () => {
    for (const signal of signals) signal.removeEventListener("abort", onAbort);
  };
  let left = false;
  // Opened by the first reading: the answer to a HEAD request has a body that nobody reads or cancels.
  let source: AsyncGenerator<string, void> | undefined;
  const open = () => {
    for (const signal of signals) signal.addEventListener("abort", onAbort, { once: true });
    if (signals.some((signal) => signal.aborted)) onAbort();
    return frames(scope.signal);
  };
  const encoder = new TextEncoder();
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        try {
          source ??= open();
          const next = await source.next();
          // The reader went away meanwhile: the body is closed already, and nothing has failed.
          if (left) return;
          if (next.done === true) {
            letGo();
            controller.close();
          } else controller.enqueue(encoder.encode(next.value));
        } catch (err) {
          letGo();
          if (!left && cut?.(err) !== true) controller.error(err);
        }
      },
      async cancel() {
        left = true;
        letGo();
        scope.abort(new InsituError("cancelled", "the reader has left"));
        await source?.return();
      },
    },
    { highWaterMark: 0 },
  );
}

export interface EventFramesOptions {
  clock: Clock;
  heartbeatMs: number;
  signal: AbortSignal;
  /** True when the run has ended: the stream then says so, and nobody reconnects to it. */
  ended(): boolean;
}

/** A run's events as server-sent events: `id` is the sequence to pass as Last-Event-ID. */
export async function* eventFrames(
  source: AsyncIterable<{ seq: number; batch: RunEventBatch }>,
  options: EventFramesOptions,
): AsyncGenerator<string, void> {
  // Sent at once, so that the client learns of the connection before the first event.
  yield "retry: 1000\n\n";
  const iterator = source[Symbol.asyncIterator]();
  try {
    let pending = nextOf(iterator);
    while (!options.signal.aborted) {
      const next = await nextOrBeat(pending, options);
      if (next === "aborted") return;
      if (next === "beat") {
        yield ": alive\n\n";
        continue;
      }
      if (next.done === true) {
        if (!options.signal.aborted && options.ended()) yield "event: end\ndata: {}\n\n";
        return;
      }
      yield `id: ${next.value.seq}\ndata: ${JSON.stringify(next.value.batch)}\n\n`;
      pending = nextOf(iterator);
    }
  } catch (err) {
    if (!options.signal.aborted)
      yield `event: problem\ndata: ${JSON.stringify(problemOf(InsituError.from(err)))}\n\n`;
  } finally {
    close(iterator);
  }
}

/** Log entries as lines of JSON. */
export async function* logFrames(
  source: AsyncIterable<LogLine>,
  signal: AbortSignal,
): AsyncGenerator<string, void> {
  const iterator = source[Symbol.asyncIterator]();
  let chunk = "";
  try {
    let pending = nextOf(iterator);
    for (;;) {
      const next = chunk === "" ? await untilAborted(pending, signal) : await soon(pending);
      if (next === null || chunk.length >= CHUNK_MIN_CHARS) {
        yield chunk;
        chunk = "";
      }
      if (next === null) continue;
      if (next.done === true) break;
      chunk += `${JSON.stringify(next.value)}\n`;
      pending = nextOf(iterator);
    }
    // A source that was told to stop may end as if it were complete.
    signal.throwIfAborted();
    if (chunk !== "") yield chunk;
  } finally {
    close(iterator);
  }
}

function nextOf<T>(iterator: AsyncIterator<T>): Promise<IteratorResult<T>> {
  const pending = iterator.next();
  // It is awaited later, perhaps never: a rejection meanwhile is not an unhandled one.
  pending.catch(() => {});
  return pending;
}

/** Not awaited: a source that waits for its next item only returns after its signal, which has aborted by then. */
function close(iterator: AsyncIterator<unknown>): void {
  iterator.return?.().catch(() => {});
}

function nextOrBeat<T>(
  pending: Promise<IteratorResult<T>>,
  { clock, heartbeatMs, signal }: EventFramesOptions,
): Promise<IteratorResult<T> | "beat" | "aborted"> {
  return new Promise((resolve, reject) => {
    const timer = clock.after(heartbeatMs, () => settle(() => resolve("beat")));
    const onAbort = () => settle(() => resolve("aborted"));
    const settle = (answer: () => void) => {
      timer.cancel();
      signal.removeEventListener("abort", onAbort);
      answer();
    };
    if (signal.aborted) return onAbort();
    signal.addEventListener("abort", onAbort, { once: true });
    pending.then(
      (next) => settle(() => resolve(next)),
      (err) => settle(() => reject(err)),
    );
  });
}

/** What a source gives without waiting for the outside takes a few microtasks; null when it takes longer. */
async function soon<T>(pending: Promise<T>): Promise<T | null> {
  return Promise.race([pending, fewMicrotasks()]);
}

async function fewMicrotasks(): Promise<null> {
  for (let i = 0; i < 8; i++) await null;
  return null;
}
