/** Starts a boxed step and ends it. Lives in the supervisor, whose death ends the box with all that is in it. */
import { type ChildProcess, spawn } from "node:child_process";
import { readlinkSync } from "node:fs";
import type { Clock } from "../../shared/system.ts";
import { signalTree } from "../executors/process-tree.ts";
import { BoxInfo, openListeners } from "./box-listeners.ts";
import { BOX_READY, type Box } from "./box-plan.ts";
import type { StepGroup } from "./group-plan.ts";
import type { NetworkPlan } from "./network-plan.ts";
import { killGroup } from "./step-group.ts";
import { type Traffic, WayOut } from "./way-out.ts";

const TOLD_MAX_CHARS = 64;
const INFO_MAX_CHARS = 4096;
const ROUND_MS = 50;

export interface BoxedChild {
  readonly child: ChildProcess;
  readonly group: StepGroup | undefined;
  /** Why the step's program never ran; undefined when it did. Asked after the exit. */
  trouble(): NodeJS.ErrnoException | undefined;
  /** Of a box with a way out: closes it, and says what went over it. Asked after the exit. */
  traffic(): Promise<Traffic | undefined>;
}

/** @throws what `spawn` throws, such as E2BIG */
export function spawnBoxed({ argv, stdin, seccomp, group, network }: Box, clock: Clock): BoxedChild {
  const [command, ...args] = argv;
  const child = spawn(command!, args, {
    // Not the step's directory: that one is entered inside.
    cwd: "/",
    env: {},
    stdio: ["pipe", "pipe", "pipe", "pipe", "pipe", network ? "pipe" : "ignore"],
    detached: true,
  });
  let told = "";
  child.stdio[4]?.on("data", (data: Buffer) => {
    if (told.length < TOLD_MAX_CHARS) told += data.toString("utf8");
  });
  // A box that fails early closes them before all was written; its exit says the rest.
  for (const stream of [child.stdin, ...child.stdio.slice(3)]) stream?.on("error", () => undefined);
  (child.stdio[3] as NodeJS.WritableStream | null)?.end(Buffer.from(seccomp, "base64"));
  const opening = network && new Opening(child, network, clock);
  if (opening)
    void opening.opened.then((isOpen) => (isOpen ? child.stdin?.end(stdin) : child.kill("SIGKILL")));
  else child.stdin?.end(stdin);
  return {
    child,
    group,
    trouble: () => {
      const word = told.trim().split("\n").at(-1)!;
      if (word === BOX_READY) return undefined;
      if (word === BOX_UP && opening?.trouble !== undefined)
        return Object.assign(new Error(opening.trouble), { code: "NETWORK" });
      const message = "the sandbox could not be set up; the step's log says why";
      return Object.assign(new Error(message), { code: word === "" || word === BOX_UP ? "BOX" : word });
    },
    traffic: async () => await opening?.close(),
  };
}

/** Said by the innermost shell of a box with a way out, when all of the box is there. */
const BOX_UP = "up";

/** The way out of a box, opened after its network is there and before anything of the step runs. */
class Opening {
  readonly opened: Promise<boolean>;
  readonly #wayOut: WayOut;
  #closed: Promise<Traffic> | undefined;
  trouble: string | undefined;

  constructor(child: ChildProcess, plan: NetworkPlan, clock: Clock) {
    this.#wayOut = new WayOut({ plan, clock });
    child.stdin?.write(`echo ${BOX_UP} >&4\n`);
    this.opened = this.#open(child, plan).then(
      () => true,
      (thrown: unknown) => {
        this.trouble = `its way out could not be opened: ${thrown instanceof Error ? thrown.message : thrown}`;
        return false;
      },
    );
  }

  close(): Promise<Traffic> {
    this.#closed ??= this.opened.then(() => this.#wayOut.close()).then(() => this.#wayOut.traffic);
    return this.#closed;
  }

  async #open(child: ChildProcess, plan: NetworkPlan): Promise<void> {
    const gone = new Promise<never>((_, reject) => {
      child.once("exit", () => reject(new Error("the box ended before")));
      child.once("error", reject);
    });
    const up = lineOf(child.stdio[4] as NodeJS.ReadableStream);
    const about = await Promise.race([lineOf(infoOf(child), "}"), gone]);
    await Promise.race([up, gone]);
    const info = BoxInfo.parse(JSON.parse(about));
    const ownNetwork = readlinkSync("/proc/self/ns/net");
    const endpoints = [plan.proxy, ...plan.targets.map(({ listen }) => listen)];
    const [proxy, ...listeners] = await openListeners(plan, info, { endpoints, ownNetwork });
    await this.#wayOut.serve(proxy!, null);
    for (const [index, listener] of listeners.entries()) await this.#wayOut.serve(listener, index);
  }
}

/** The types know of five. */
function infoOf(child: ChildProcess): NodeJS.ReadableStream {
  return (child.stdio as readonly unknown[])[5] as NodeJS.ReadableStream;
}

/** Up to the mark; what is said after it is for others. */
function lineOf(stream: NodeJS.ReadableStream, mark = "\n"): Promise<string> {
  let text = "";
  return new Promise((resolve) => {
    stream.on("data", (data: Buffer) => {
      if (text.includes(mark) || text.length > INFO_MAX_CHARS) return;
      text += data.toString("utf8");
      if (text.includes(mark)) resolve(text);
    });
  });
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
