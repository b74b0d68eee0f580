/**
 * `started.json` in the directory of a step: whoever creates it decides whether the step begins, and nobody else can.
 * A supervisor creates it before it starts the processes; an agent that finds none creates it so that nobody starts
 * the step later, for example from a message that was still on its way.
 */
import { closeSync, mkdirSync, openSync, readFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { ProcessIdentity } from "./process-identity.ts";

const STARTED_FILE = "started.json";

const Started = z.object({
  v: z.literal(1),
  /** Name of the supervisor's directory; null for an agent that gave the step up. */
  supervisor: z.string().nullable(),
  by: ProcessIdentity,
});
type Started = z.infer<typeof Started>;

/**
 * True for the one caller that is the first. The directory is made, what holds it is not: a step whose workspace was
 * removed cannot begin any more.
 *
 * @throws ENOENT when the workspace has gone, ENOSPC and others when nothing can be written
 */
export function claim(directory: string, started: Omit<Started, "v">): boolean {
  let fd: number;
  try {
    mkdirSync(directory, { mode: 0o700 });
  } catch (thrown) {
    if ((thrown as NodeJS.ErrnoException).code !== "EEXIST") throw thrown;
  }
  try {
    fd = openSync(join(directory, STARTED_FILE), "wx", 0o600);
  } catch (thrown) {
    if ((thrown as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw thrown;
  }
  try {
    writeSync(fd, JSON.stringify({ v: 1, ...started }));
  } finally {
    closeSync(fd);
  }
  return true;
}

/**
 * Undefined when nobody has begun; "unreadable" when somebody has and the file does not say who: it was killed
 * between the two, or the disk was full.
 */
export function startedOf(directory: string): Started | "unreadable" | undefined {
  let text: string;
  try {
    text = readFileSync(join(directory, STARTED_FILE), "utf8");
  } catch (thrown) {
    return (thrown as NodeJS.ErrnoException).code === "ENOENT" ? undefined : "unreadable";
  }
  try {
    return Started.parse(JSON.parse(text));
  } catch {
    return "unreadable";
  }
}
