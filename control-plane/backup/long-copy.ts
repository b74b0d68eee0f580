/** What a person sees while a large stream is copied. */
import type { Clock } from "../../shared/system.ts";

const EVERY_MS = 5_000;

/** The same pieces; stops when the signal aborts, and says every few seconds how far it is. */
export async function* watched(
  pieces: AsyncIterable<Uint8Array>,
  world: { name: string; clock: Clock; signal: AbortSignal; progress(line: string): Promise<void> },
): AsyncGenerator<Uint8Array> {
  const { name, clock, signal, progress } = world;
  let nextMs = clock.monotonicMs() + EVERY_MS;
  let bytes = 0;
  for await (const piece of pieces) {
    signal.throwIfAborted();
    yield piece;
    bytes += piece.length;
    if (clock.monotonicMs() < nextMs) continue;
    nextMs = clock.monotonicMs() + EVERY_MS;
    await progress(`${name}: ${Math.round(bytes / 1e6)} MB so far`);
  }
}
