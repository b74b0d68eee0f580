/** Follows a run to its end and shows it: a tree that is drawn in place on a terminal, else one line per change. */
import type { Clock } from "../../shared/system.ts";
import type { ApiClient } from "./client.ts";
import { LiveArea } from "./live-area.ts";
import { changeLines, type Frame, renderTree } from "./render-tree.ts";
import { foldBatch, isEnded, type RunView, viewOf } from "./run-view.ts";
import type { Screen } from "./terminal.ts";

const FRAME_MS = 100;
const AGENTS_MS = 3_000;

export interface WatchOptions {
  screen: Screen;
  color: boolean;
  clock: Clock;
  signal: AbortSignal;
  /** Shows nothing. */
  quiet?: boolean;
}

/** Gives the view of the run at its end. Whatever happens, the terminal is left as it was found. */
export async function watchRun(client: ApiClient, runId: string, options: WatchOptions): Promise<RunView> {
  const { screen, clock, signal } = options;
  let view = viewOf(await client.getRun(runId, signal));
  let connected: Set<string> | null = null;
  let online = true;
  const live = !options.quiet && screen.isTty ? new LiveArea(screen) : null;
  let said: RunView | null = null;
  const show = (): void => {
    if (options.quiet) return;
    if (live === null) {
      for (const line of changeLines(said, view, { connected }))
        screen.write(`${line}\n`).catch(() => undefined);
      said = view;
      return;
    }
    const frame: Frame = {
      width: screen.columns(),
      // One row stays free, so that the terminal never scrolls the head away.
      height: screen.rows() - 1,
      nowMs: clock.wallMs(),
      color: options.color,
      connected,
      online,
    };
    live.draw(renderTree(view, frame));
  };
  const askAgents = async (): Promise<void> => {
    if (!view.steps.some(({ status }) => status === "offered")) return;
    const agents = await client.listAgents(signal);
    const known = new Set(agents.filter((agent) => agent.connected).map(({ environment }) => environment));
    const nobody = waitsForNobody(view, known) && !waitsForNobody(view, connected);
    connected = known;
    if (nobody && live === null && !options.quiet) {
      for (const line of nobodyLines(view, known)) await screen.write(`${line}\n`);
    }
  };
  const frames = live ? clock.every(FRAME_MS, show) : null;
  // Advice only: when it fails, the event stream says what is the matter.
  const asking = clock.every(AGENTS_MS, () => askAgents().catch(() => undefined));
  const unwatchSize = live ? screen.onResize(show) : null;
  live?.open();
  try {
    show();
    const onConnection = (up: boolean): void => {
      online = up;
    };
    if (!isEnded(view.status)) {
      for await (const { seq, batch } of client.events(runId, view.seq, { signal, onConnection })) {
        view = foldBatch(view, seq, batch.events);
        if (live === null) show();
        if (isEnded(view.status)) break;
      }
    }
    return view;
  } finally {
    frames?.cancel();
    asking.cancel();
    unwatchSize?.();
    if (live !== null) show();
    live?.close();
  }
}

function waitsForNobody(view: RunView, connected: ReadonlySet<string> | null): boolean {
  return connected !== null && nobodyLines(view, connected).length > 0;
}

function nobodyLines(view: RunView, connected: ReadonlySet<string>): string[] {
  return view.steps
    .filter(
      ({ status, environment }) =>
        status === "offered" && environment !== null && !connected.has(environment),
    )
    .map(({ id, environment }) => `${id}  offered  ${environment}  no agent of ${environment} is connected`);
}
