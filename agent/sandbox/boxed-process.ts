/** Starts a boxed step and ends it. Lives in the supervisor, whose death ends the box with all that is in it. */
import { type ChildProcess, spawn } from "node:child_process";
import type { Clock } from "../../shared/system.ts";
import { signalTree } from "../executors/process-tree.ts";
import { BOX_READY, type Box } from "./box-plan.ts";
import type { StepGroup } from "./group-plan.ts";
import { killGroup } from "./step-group.ts";

const TOLD_MAX_CHARS = 64;
const ROUND_MS = 50;

export interface BoxedChild {
  readonly child: ChildProcess;
  readonly group: StepGroup | undefined;
  /** Why the step's program never ran; undefined when it did. Asked after the exit. */
  trouble(): NodeJS.ErrnoException | undefined;
}

/** @throws what `spawn` throws, such as E2BIG */
export function spawnBoxed({ argv, stdin, seccomp, group }: Box): BoxedChild {
  const [command, ...args] = argv;
  const child = spawn(command!, args, {
    // Not the step's directory: that one is entered inside.
    cwd: "/",
    env: {},
    stdio: ["pipe", "pipe", "pipe", "pipe", "pipe"],
    detached: true,
  });
  let told = "";
  child.stdio[4]?.on("data", (data: Buffer) => {
    if (told.length < TOLD_MAX_CHARS) told += data.toString("utf8");
  });
  // A box that fails early closes them before all was written; its exit says the rest.
  for (const stream of [child.stdin, child.stdio[3], child.stdio[4]]) stream?.on("error", () => undefined);
  child.stdin?.end(stdin);
  (child.stdio[3] as NodeJS.WritableStream | null)?.end(Buffer.from(seccomp, "base64"));
  return {
    child,
    group,
    trouble: () => {
      const word = told.trim();
      if (word === BOX_READY) return undefined;
      const message = "the sandbox could not be set up; the step's log says why";
      return Object.assign(new Error(message), { code: word === "" ? "BOX" : word });
    },
  };
}

/**
 * SIGTERM to the step's processes, and when the grace is over SIGKILL to bubblewrap: the kernel ends all that is in
 * its process namespace, whatever it did to hide.
 */
export async function endBox(
  { child, group }: BoxedChild,
  marker: string,
  { graceMs, clock }: { graceMs: number; clock: Clock },
): Promise<void> {
  const until = clock.monotonicMs() + graceMs;
  // Not to the group: bubblewrap is in it, and its end would take the step's grace away.
  signalTree(marker, undefined, "SIGTERM");
  while (clock.monotonicMs() < until && child.exitCode === null && child.signalCode === null) {
    await clock.sleep(Math.min(ROUND_MS, graceMs));
  }
  if (group) killGroup(group);
  child.kill("SIGKILL");
}
