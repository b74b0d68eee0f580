/** Messages between hosts: late, lost, doubled, out of order; and links that are cut for a while. */
import type { Chance } from "./chance.ts";
import type { Timeline } from "./timeline.ts";

/** How unkind the world is; all shares lie in [0, 1]. */
export interface Weather {
  drop: number;
  duplicate: number;
  delayMaxMs: number;
  /** Share of messages that are much later than the others. */
  straggle: number;
}

export const CALM: Weather = { drop: 0, duplicate: 0, delayMaxMs: 3, straggle: 0 };

const STRAGGLE_MAX_MS = 40_000;
const RETRANSMIT_MS = 400;

export class Network {
  weather: Weather = CALM;
  readonly #timeline: Timeline;
  readonly #chance: Chance;
  readonly #cutUntilMs = new Map<string, number>();

  constructor(timeline: Timeline, chance: Chance) {
    this.#timeline = timeline;
    this.#chance = chance;
  }

  cut(one: string, other: string, forMs: number): void {
    this.#cutUntilMs.set(linkOf(one, other), this.#timeline.nowMs + forMs);
  }

  heal(): void {
    this.#cutUntilMs.clear();
    this.weather = CALM;
  }

  isCut(one: string, other: string): boolean {
    return (this.#cutUntilMs.get(linkOf(one, other)) ?? 0) > this.#timeline.nowMs;
  }

  delayMs(): number {
    const { delayMaxMs, straggle } = this.weather;
    if (straggle > 0 && this.#chance.happens(straggle)) return this.#chance.int(0, STRAGGLE_MAX_MS);
    return this.#chance.int(1, delayMaxMs);
  }

  /** A message by itself: it may be lost, come twice, or overtake others. */
  send(from: string, to: string, deliver: () => void): void {
    const copies = this.#chance.happens(this.weather.duplicate) ? 2 : 1;
    for (let copy = 0; copy < copies; copy++) {
      if (this.#chance.happens(this.weather.drop)) continue;
      this.#timeline.after(this.delayMs(), () => {
        if (!this.isCut(from, to)) deliver();
      });
    }
  }

  /** A stream within a connection: in order, nothing lost while it lasts; a cut link only holds it up. */
  stream(from: string, to: string, isOpen: () => boolean): (deliver: () => void) => void {
    let lastMs = 0;
    const queue: (() => void)[] = [];
    const arrive = (): void => {
      if (!isOpen()) return;
      if (this.isCut(from, to)) {
        this.#timeline.after(RETRANSMIT_MS, arrive);
        return;
      }
      queue.shift()?.();
    };
    return (deliver) => {
      queue.push(deliver);
      lastMs = Math.max(lastMs, this.#timeline.nowMs + this.delayMs());
      this.#timeline.after(lastMs - this.#timeline.nowMs, arrive);
    };
  }
}

function linkOf(one: string, other: string): string {
  return one < other ? `${one}|${other}` : `${other}|${one}`;
}
