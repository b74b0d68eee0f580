/**
 * Whether this agent may take new work. The control plane says so; what it said last holds over restarts, and while the
 * site is cut off. At the deadline of a drain, what still runs is ended, also without a connection.
 */
import type { Logger } from "pino";
import type { Clock, Timer } from "../../shared/system.ts";
import type { Cordon__Output } from "../../shared/wire/gen/insitu/agent/v1/Cordon.ts";
import { type CordonState, NEVER_CORDONED, newerCordon } from "./cordon.ts";

export interface CordonOptions {
  clock: Clock;
  log: Logger;
  store: {
    cordon(): CordonState | undefined;
    /** Resolves when durable. */
    keepCordon(state: CordonState): Promise<void>;
  };
  centreNowMs(): number;
  /** It may take work again, or may not; or the control plane may be told so. */
  onChange(): void;
  /** The deadline of a drain has passed. Called again after a restart. Returns how many steps were ended. */
  onDeadline(options: { once: boolean; message: string }): number;
}

/** The clock of the control plane is followed from here: how far off it is may become known later. */
const LOOK_MAX_MS = 10_000;

export class CordonService {
  readonly #options: CordonOptions;
  #state: CordonState;
  #durableRevision: number;
  #writing = false;
  #timer: Timer | undefined;
  #ended = false;

  constructor(options: CordonOptions) {
    this.#options = options;
    this.#state = options.store.cordon() ?? NEVER_CORDONED;
    this.#durableRevision = this.#state.revision;
  }

  get cordoned(): boolean {
    return this.#state.cordoned;
  }

  /** Up to which this agent's word holds: also its next process knows of it. */
  get revision(): number {
    return this.#durableRevision;
  }

  /** Once what an earlier process left is taken up again. */
  start(): void {
    if (this.#state.cordoned) this.#options.log.warn(this.#facts(), "this agent is cordoned");
    this.#look();
  }

  close(): void {
    this.#timer?.cancel();
    this.#timer = undefined;
    this.#ended = true;
  }

  /** Null, from a control plane that says nothing of it, changes nothing. Nor does what is older than what is known. */
  hear(told: Cordon__Output | null | undefined): void {
    const newer = newerCordon(this.#state, told);
    if (newer !== undefined) {
      this.#state = newer;
      this.#options.log.info(this.#facts(), newer.cordoned ? "cordoned" : "not cordoned any more");
      this.#look();
      this.#options.onChange();
    }
    if (told && this.#durableRevision < this.#state.revision) void this.#keep();
  }

  #facts() {
    const { revision: _, ...facts } = this.#state;
    return facts;
  }

  /** Never rejects. What could not be written holds all the same, and is written when it is heard again. */
  async #keep(): Promise<void> {
    if (this.#writing) return;
    this.#writing = true;
    const state = this.#state;
    try {
      await this.#options.store.keepCordon(state);
      this.#durableRevision = Math.max(this.#durableRevision, state.revision);
    } catch (err) {
      this.#options.log.error({ err }, "the cordon is not on disk yet: a restart would forget it");
      return;
    } finally {
      this.#writing = false;
    }
    if (this.#durableRevision < this.#state.revision) return await this.#keep();
    this.#options.onChange();
  }

  #look(): void {
    this.#timer?.cancel();
    this.#timer = undefined;
    const { clock, log, centreNowMs, onDeadline } = this.#options;
    const { cordoned, drainDeadlineMs, drainOnce: once, by, reason } = this.#state;
    if (!cordoned || drainDeadlineMs === 0 || this.#ended) return;
    const leftMs = drainDeadlineMs - centreNowMs();
    if (leftMs > 0) {
      this.#timer = clock.after(Math.min(leftMs, LOOK_MAX_MS), () => this.#look());
      return;
    }
    const why = reason === "" ? "" : `: ${reason}`;
    const message = `the agent was drained by ${by}${why}; the deadline for what still ran has passed`;
    const steps = onDeadline({ once, message });
    if (steps > 0) log.warn({ steps }, "the deadline of the drain has passed: steps are ended");
  }
}
