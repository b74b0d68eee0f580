/** Virtual time: events in order of their moment, and of their making within one millisecond. */
import type { Clock, Timer } from "../../shared/system.ts";

/** What the worlds call the beginning of time; whole milliseconds since the Unix epoch. */
export const BEGIN_MS = 1_800_000_000_000;

interface Entry {
  atMs: number;
  order: number;
  run: (() => void) | undefined;
}

export class Timeline {
  nowMs = 0;
  /** Events so far. */
  count = 0;
  readonly #heap: Entry[] = [];
  readonly #trace: ((line: string) => void) | undefined;
  #order = 0;

  constructor(trace?: (line: string) => void) {
    this.#trace = trace;
  }

  /** Calls back after so many virtual milliseconds, whatever lives or dies meanwhile. */
  after(delayMs: number, run: () => void): Timer {
    const entry: Entry = { atMs: this.nowMs + Math.max(0, Math.ceil(delayMs)), order: this.#order++, run };
    this.#push(entry);
    return {
      cancel: () => {
        entry.run = undefined;
      },
    };
  }

  /** The text is made only when somebody looks. */
  note(text: () => string): void {
    this.#trace?.(`${(this.nowMs / 1000).toFixed(3).padStart(9)}  ${text()}`);
  }

  /** One event, and everything that follows from it at once. False when nothing is left, or nothing before `untilMs`. */
  async step(untilMs: number): Promise<boolean> {
    let top = this.#heap[0];
    while (top && !top.run) {
      this.#pop();
      top = this.#heap[0];
    }
    if (!top?.run || top.atMs > untilMs) return false;
    this.#pop();
    this.nowMs = top.atMs;
    this.count += 1;
    top.run();
    // A turn of the event loop begins when no promise has anything left to do.
    await new Promise((resolve) => setImmediate(resolve));
    return true;
  }

  #push(entry: Entry): void {
    const heap = this.#heap;
    heap.push(entry);
    for (let child = heap.length - 1; child > 0; ) {
      const parent = (child - 1) >> 1;
      if (before(heap[parent]!, heap[child]!)) return;
      [heap[parent], heap[child]] = [heap[child]!, heap[parent]!];
      child = parent;
    }
  }

  #pop(): void {
    const heap = this.#heap;
    const last = heap.pop()!;
    if (heap.length === 0) return;
    heap[0] = last;
    for (let parent = 0; ; ) {
      let least = parent;
      for (const child of [2 * parent + 1, 2 * parent + 2]) {
        if (child < heap.length && before(heap[child]!, heap[least]!)) least = child;
      }
      if (least === parent) return;
      [heap[parent], heap[least]] = [heap[least]!, heap[parent]!];
      parent = least;
    }
  }
}

function before(one: Entry, other: Entry): boolean {
  return one.atMs < other.atMs || (one.atMs === other.atMs && one.order < other.order);
}

/** A host: its wall clock may be wrong and may jump. What a crash takes from it is a `Process`. */
export interface Host {
  readonly name: string;
  skewMs: number;
}

/** One life of a program. Dead, it does nothing more: its timers do not fire and its calls are not answered. */
export class Process {
  alive = true;
  readonly clock: Clock;

  constructor(timeline: Timeline, host: Host) {
    const live = (run: () => void) => () => {
      if (this.alive) run();
    };
    // Meaningless in another process, so it begins anew in each.
    const bornMs = timeline.nowMs;
    this.clock = {
      wallMs: () => BEGIN_MS + timeline.nowMs + host.skewMs,
      monotonicMs: () => timeline.nowMs - bornMs,
      sleep: (ms, signal) =>
        new Promise((resolve, reject) => {
          if (signal?.aborted) return reject(signal.reason);
          const onAbort = (): void => {
            timer.cancel();
            reject(signal?.reason);
          };
          const wake = live(() => {
            signal?.removeEventListener("abort", onAbort);
            resolve();
          });
          const timer = timeline.after(ms, wake);
          signal?.addEventListener("abort", onAbort, { once: true });
        }),
      after: (ms, run) => timeline.after(ms, live(run)),
      every: (ms, run) => {
        let timer: Timer;
        let over = false;
        const again = (): void => {
          if (over || !this.alive) return;
          timer = timeline.after(ms, again);
          run();
        };
        timer = timeline.after(ms, again);
        return {
          cancel: () => {
            over = true;
            timer.cancel();
          },
        };
      },
    };
  }
}
