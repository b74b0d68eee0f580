/** What became of a cordon: whether the agent knows of it, and what it still holds. Pure. */
import type { AgentView } from "../api/schemas.ts";
import type { AgentRecord } from "./agent-record.ts";

/** What an agent said last, now or before it went away. */
export interface LastWord {
  /** Of the cordon that it will not forget; 0 also from agents of a release that keep none. */
  cordonRevision: number;
  notTakingWork: string;
  /** Attempts that it holds, and outcomes that it has not delivered. */
  held: number;
}

/**
 * An agent that takes no work and holds nothing stays so while it is away, for it remembers. One that has not said that
 * it knows may be taking work at this moment: nothing counts as drained before.
 */
export function cordonView(
  { cordon, cordonRevision }: Pick<AgentRecord, "cordon" | "cordonRevision">,
  last: LastWord | undefined,
): AgentView["cordon"] {
  if (cordon === null) return null;
  return { ...cordon, state: stateOf(cordon.drain !== null, cordonRevision, last), left: last?.held ?? null };
}

function stateOf(
  isDrain: boolean,
  revision: number,
  last: LastWord | undefined,
): NonNullable<AgentView["cordon"]>["state"] {
  if (last === undefined || !knows(last, revision)) return "not-heard";
  if (!isDrain) return "cordoned";
  return last.held === 0 ? "drained" : "draining";
}

/**
 * An agent of a release before revisions says by its reason alone that it has heard. One that knows of a later word than
 * the record, as after a restored backup, goes by that one, whatever it was.
 */
function knows({ cordonRevision, notTakingWork }: LastWord, revision: number): boolean {
  return cordonRevision === revision || (cordonRevision === 0 && notTakingWork === "cordoned");
}
