/** The last line on the terminal while everything is up: who is there and what runs, without scrolling. */
import type { Clock, Timer } from "../../../shared/system.ts";
import type { ApiClient } from "../client.ts";
import { LiveArea } from "../live-area.ts";
import type { Output } from "../output.ts";
import { cut, duration, plural } from "../text.ts";

const ASK_MS = 2_000;
const RUNS_MAX = 200;

export class StatusLine implements Disposable {
  readonly #output: Output;
  readonly #clock: Clock;
  readonly #client: ApiClient;
  readonly #signal: AbortSignal;
  readonly #sites: number;
  readonly #area: LiveArea | null;
  readonly #timer: Timer;
  readonly #sinceMs: number;
  #facts = "";

  /** On a terminal a line that is kept current; elsewhere it is said once. */
  constructor(options: {
    output: Output;
    clock: Clock;
    client: ApiClient;
    signal: AbortSignal;
    sites: number;
  }) {
    const { output, clock } = options;
    this.#output = output;
    this.#clock = clock;
    this.#client = options.client;
    this.#signal = options.signal;
    this.#sites = options.sites;
    this.#sinceMs = clock.monotonicMs();
    const screen = output.terminal.err;
    this.#area = screen.isTty ? new LiveArea(screen) : null;
    this.#area?.open();
    this.#timer = clock.every(ASK_MS, () => this.#ask());
  }

  async start(): Promise<void> {
    if (this.#area === null) await this.#output.note(this.#text());
    else this.#draw();
  }

  /** Something that stays, above the line. */
  async note(text: string): Promise<void> {
    this.#area?.draw([]);
    await this.#output.note(text);
    this.#draw();
  }

  [Symbol.dispose](): void {
    this.#timer.cancel();
    this.#area?.draw([]);
    this.#area?.close();
  }

  #draw(): void {
    this.#area?.draw([cut(this.#text(), this.#output.terminal.err.columns() - 1)]);
  }

  #text(): string {
    const paint = this.#output.paintErr;
    const facts = this.#facts === "" ? "" : `  ${paint("dim", this.#facts)}`;
    return `${paint("green", "●")} Everything is up. Ctrl-C stops it.${facts}`;
  }

  #ask(): void {
    if (this.#area === null) return;
    this.#read().then(
      (facts) => {
        this.#facts = facts;
        if (!this.#signal.aborted) this.#draw();
      },
      () => undefined, // a server that does not answer is noticed by its exit
    );
  }

  async #read(): Promise<string> {
    const agents = await this.#client.listAgents(this.#signal);
    const runs = await this.#client.listRuns({ limit: RUNS_MAX }, this.#signal);
    const connected = agents.filter((agent) => agent.connected).length;
    const running = runs.filter(({ finishedAtMs }) => finishedAtMs === null).length;
    const seconds = Math.floor((this.#clock.monotonicMs() - this.#sinceMs) / 1_000);
    const up = seconds < 60 ? `${seconds} s` : duration(seconds * 1_000);
    const active = running === 0 ? "" : `, ${running} running`;
    return `${connected} of ${this.#sites} agents, ${plural(runs.length, "run")}${active}, ${up}`;
  }
}
