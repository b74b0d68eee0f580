/** The site's own journal of side effects: written by the steps themselves, and by nothing of the product. */

export interface WitnessLine {
  mark: "start" | "end";
  runId: string;
  step: string;
  attempt: number;
  epoch: number;
  site: string;
  agent: string;
  atMs: number;
}

const LINE = /^(start|end) (\S+) (\S+) (\d+) (\d+) (\S+) (\S+) (\d+)$/;

/** @throws Error at a line that is damaged: then the witness itself cannot be trusted */
export function parseWitness(text: string): WitnessLine[] {
  return text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => {
      const match = LINE.exec(line);
      if (!match) throw new Error(`the journal of side effects has a damaged line: ${JSON.stringify(line)}`);
      const [, mark, runId, step, attempt, epoch, site, agent, atMs] = match;
      return {
        mark: mark as "start" | "end",
        runId: runId!,
        step: step!,
        attempt: Number(attempt),
        epoch: Number(epoch),
        site: site!,
        agent: agent!,
        atMs: Number(atMs),
      };
    });
}
