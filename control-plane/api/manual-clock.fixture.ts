/** A clock that stands until it is told to move. */
import type { Clock, Timer } from "../../shared/system.ts";

export class ManualClock implements Clock {
  #nowMs = 1_000_000;
  readonly #timers = new Set<{ atMs: number; fire: () => void }>();

  wallMs(): number {
    return this.#nowMs;
  }
  monotonicMs(): number {
    return this.#nowMs;
  }
  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => this.after(ms, resolve));
  }
  after(ms: number, fn: () => void): Timer {
    const timer = { atMs: this.#nowMs + ms, fire: fn };
    this.#timers.add(timer);
    return { cancel: () => this.#timers.delete(timer) };
  }
  every(ms: number, fn: () => void): Timer {
    const again = (): Timer =>
      this.after(ms, () => {
        fn();
        timer = again();
      });
    let timer = again();
    return { cancel: () => timer.cancel() };
  }
  /** Timers that are set now. */
  get pending(): number {
    return this.#timers.size;
  }
  advance(ms: number): void {
    this.#nowMs += ms;
    for (const timer of [...this.#timers]) {
      if (timer.atMs > this.#nowMs) continue;
      this.#timers.delete(timer);
      timer.fire();
    }
  }
}
