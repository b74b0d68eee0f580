/** Lines of a step's log from the first that it writes until a reader who follows has all of them. */
import type { LogLine } from "../../control-plane/api/schemas.ts";
import { systemClock } from "../../shared/system.ts";
import { linesIn } from "../../shared/wire/log-codec.ts";
import type { Plant } from "../support/plant.ts";

/** A line that says something else each time, of about 60 bytes. */
export function writesLines(count: number): { run: string[] } {
  return {
    run: ["seq", "-f", "2026-11-25T14:00:00Z INFO  row %.0f of the table was read", "1", String(count)],
  };
}

/** Lines a second, of a run of a pipeline whose one step writes so many. Throws when any is missing. */
export async function measureLogs(plant: Plant, pipeline: string, count: number): Promise<number> {
  const startMs = systemClock.monotonicMs();
  const { id } = await plant.start(pipeline);
  const headers = { authorization: `Bearer ${plant.token}` };
  const response = await fetch(`${plant.url}/v1/runs/${id}/logs?follow=true`, { headers });
  if (!response.ok) throw new Error(`logs of ${id}: ${response.status} ${await response.text()}`);
  let lines = 0;
  let doneMs: number | undefined;
  const decoder = new TextDecoder();
  let rest = "";
  for await (const bytes of response.body!) {
    const texts = (rest + decoder.decode(bytes, { stream: true })).split("\n");
    rest = texts.pop() ?? "";
    for (const text of texts) {
      const { data, droppedLines = 0, refused } = JSON.parse(text) as LogLine;
      if (droppedLines > 0 || refused !== undefined) throw new Error(`lines of ${id} are missing: ${text}`);
      lines += linesIn(Buffer.from(data, "base64"));
    }
    // The end of a run comes a little after its log: a reader has what it wants before.
    if (lines === count) doneMs ??= systemClock.monotonicMs();
  }
  if (lines !== count || doneMs === undefined)
    throw new Error(`${lines} lines of ${count} came of run ${id}`);
  return count / ((doneMs - startMs) / 1_000);
}
