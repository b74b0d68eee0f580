/** The part of the agent's configuration that says how steps are boxed. */
import { z } from "zod";
import { CLASSIFICATIONS } from "../../shared/model/spec.ts";

const MiB = 1024 * 1024;
/** In the range that systemd leaves to dynamic users, which nobody logs in as. */
const STEP_ID = 62_017;
const Id = z.coerce.number().int().min(1).max(4_294_967_294);

export const SandboxConfig = z.strictObject({
  /**
   * `required`: no process step runs without. `preferred`: every one is boxed where the host can; where it cannot,
   * only steps within `unboxedUpTo` run. `off`: as on a host that cannot.
   */
  mode: z.enum(["required", "preferred", "off"]).default("preferred"),
  /** The highest class of data that a step may name on this agent without a box. */
  unboxedUpTo: z.enum(CLASSIFICATIONS).default("internal"),
  /** What steps see of the host, read-only, besides the system's programs. Absolute. */
  paths: z.array(z.string().regex(/^\/./, "an absolute path, and not / itself")).default([]),
  /** Whom steps run as when the agent is root. */
  user: z.strictObject({ uid: Id, gid: Id }).default({ uid: STEP_ID, gid: STEP_ID }),
  limits: z
    .strictObject({
      openFiles: z.coerce.number().int().min(16).default(1024),
      /** Of one file. */
      fileSizeBytes: z.coerce
        .number()
        .int()
        .min(MiB)
        .default(64 * 1024 * MiB),
      /** Of /tmp and of /dev/shm, which lie in memory. */
      tmpBytes: z.coerce
        .number()
        .int()
        .min(MiB)
        .default(256 * MiB),
    })
    .prefault({}),
});
export type SandboxConfig = z.infer<typeof SandboxConfig>;
