/**
 * What agent and supervisor say to each other, over a unix socket, a line of JSON each; and the exit record.
 *
 * Either may be of an earlier release, for a supervisor outlives the agent's upgrade. So this protocol only grows:
 * fields are added, and who does not know them passes over them. A word that an earlier supervisor does not know ends
 * the connection, and is said to none whose `revision` is too low. A change that cannot be made so is another protocol:
 * the two then do not talk, and the agent follows such a step by what lies on disk.
 */
import type { Socket } from "node:net";
import { StringDecoder } from "node:string_decoder";
import { z } from "zod";
import { StepGroup } from "../sandbox/group-plan.ts";
import { NetworkPlan } from "../sandbox/network-plan.ts";
import { Traffic } from "../sandbox/way-out.ts";
import { ProcessIdentity } from "./process-identity.ts";

export const SUPERVISOR_PROTOCOL = 1;
/**
 * 2: boxes a step whose spec has a box, writes `started.json` before it begins, and says why one did not begin.
 * 3: masks secrets in what it writes down. 4: makes the control group of a box. 5: opens the
 * way out of one. Absent: 1. A step is given to none of a lower revision: it would pass over the box or the secrets and
 * start the step without, or not find the group.
 */
export const SUPERVISOR_REVISION = 5;

/** `code` is that of the system call, or empty. */
const Trouble = z.object({ code: z.string(), message: z.string() });
export type Trouble = z.infer<typeof Trouble>;

const Stop = z.object({ reason: z.enum(["cancelled", "interrupted", "timed-out"]), message: z.string() });

export const StepSpec = z.object({
  key: z.string(),
  /** Holds `started.json`, `frames/`, `exit.json` and the slot for it. */
  directory: z.string(),
  argv: z.array(z.string()).min(1),
  env: z.record(z.string(), z.string()),
  cwd: z.string(),
  marker: z.string(),
  timeoutMs: z.number(),
  killGraceMs: z.number(),
  /** How it is boxed; `argv` and `env` are in it then. Missing: plain processes. */
  box: z
    .object({
      argv: z.array(z.string()).min(1),
      stdin: z.string(),
      seccomp: z.string(),
      group: StepGroup.optional(),
      network: NetworkPlan.optional(),
    })
    .optional(),
  /** Missing: the step has none. Values are base64; they are in no file, and on no command line. */
  secrets: z
    .object({
      /** What is masked. */
      values: z.array(z.string()),
      /** Of a step without a box: made in memory before it starts, removed when it has ended. */
      files: z.object({ directory: z.string(), contents: z.record(z.string(), z.string()) }).optional(),
      /** Masked when the step has ended. */
      outputs: z.object({ directory: z.string(), maxBytes: z.record(z.string(), z.number()) }),
    })
    .optional(),
});
export type StepSpec = z.infer<typeof StepSpec>;

export const ToSupervisor = z.discriminatedUnion("op", [
  z.object({ op: z.literal("start"), spec: StepSpec }),
  z.object({ op: z.literal("attach"), key: z.string(), offset: z.number() }),
  /** Everything before the offset is with the agent. */
  z.object({ op: z.literal("read"), key: z.string(), offset: z.number() }),
  z.object({ op: z.literal("stop"), key: z.string(), stop: Stop }),
  /** End, if nothing runs. */
  z.object({ op: z.literal("leave") }),
]);
export type ToSupervisor = z.infer<typeof ToSupervisor>;

export const FromSupervisor = z.discriminatedUnion("say", [
  z.object({
    say: z.literal("hello"),
    protocol: z.number(),
    revision: z.number().optional(),
    software: z.string(),
    pid: z.number(),
  }),
  z.object({ say: z.literal("output"), key: z.string(), end: z.number() }),
  /** The exit record is on disk; or there is none, for the step did not begin (`error`). */
  z.object({ say: z.literal("exit"), key: z.string(), error: Trouble.optional() }),
  z.object({ say: z.literal("unknown"), key: z.string() }),
]);
export type FromSupervisor = z.infer<typeof FromSupervisor>;

/** `about.json` in a supervisor's directory. The socket has a short path of its own when the directory's is too long. */
export const About = z.object({
  socketPath: z.string(),
  pid: z.number().optional(),
  revision: z.number().optional(),
  process: ProcessIdentity.optional(),
});
export type About = z.infer<typeof About>;

/** `exit.json`: how the process ended. Complete, or not there. */
export const ExitRecord = z.object({
  v: z.literal(1),
  code: z.number().nullable(),
  signal: z.string().nullable(),
  stopped: Stop.nullable(),
  /** It could not be started. */
  error: Trouble.nullable(),
  startedAtMs: z.number(),
  endedAtMs: z.number(),
  /** End of the frames. */
  end: z.number(),
  droppedBytes: z.number(),
  /** Ends of lines among them. */
  droppedLines: z.number().optional(),
  /** Of a step with secrets. `trouble`: outputs may hold some, and must not be passed on. */
  secrets: z
    .object({
      /** How often one was masked in what the step wrote. */
      maskedInLog: z.number(),
      /** Names of those in which one was; null: too many for the room of the record, so take it for all. */
      maskedOutputs: z.array(z.string()).nullable(),
      trouble: z.string().nullable(),
    })
    .optional(),
  /** The limits that it met, with their values; see `LimitsMet`. */
  limitsMet: z.object({ memoryBytes: z.number().optional(), processes: z.number().optional() }).optional(),
  /** Of a step with a way out. */
  network: Traffic.optional(),
});
export type ExitRecord = z.infer<typeof ExitRecord>;

/** Calls back with each line that is a message. Anything else ends the connection. */
export function onMessages<T>(socket: Socket, schema: z.ZodType<T>, receive: (message: T) => void): void {
  const decoder = new StringDecoder("utf8");
  let rest = "";
  socket.on("data", (data: Buffer) => {
    const lines = (rest + decoder.write(data)).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      let message: T;
      try {
        message = schema.parse(JSON.parse(line));
      } catch (err) {
        socket.destroy(err instanceof Error ? err : new Error(String(err)));
        return;
      }
      receive(message);
    }
  });
}

export function tell(socket: Socket, message: ToSupervisor | FromSupervisor): void {
  if (!socket.destroyed) socket.write(`${JSON.stringify(message)}\n`);
}
