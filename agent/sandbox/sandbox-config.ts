/** The part of the agent's configuration that says how steps are boxed. */
import { z } from "zod";
import { CLASSIFICATIONS } from "../../shared/model/spec.ts";
import { isTargetRule, TARGET_RULE_EXPECTED } from "../policy/target-rule.ts";

const MiB = 1024 * 1024;
/** In the range that systemd leaves to dynamic users, which nobody logs in as. */
const STEP_ID = 62_017;
const Id = z.coerce.number().int().min(1).max(4_294_967_294);

const Bytes = z.coerce.number().int().min(MiB);
const Cores = z.coerce.number().min(0.01).max(1024);
const Count = z.coerce.number().int().min(1).max(4_194_304);
const OpenFiles = z.coerce.number().int().min(16).max(1_048_576);

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
  /** Where steps may be let out to that ask for it. Nothing: nowhere. An address of this host counts only by itself. */
  egress: z.array(z.string().refine(isTargetRule, TARGET_RULE_EXPECTED)).max(1_000).default([]),
  /** Whom steps run as when the agent is root. */
  user: z.strictObject({ uid: Id, gid: Id }).default({ uid: STEP_ID, gid: STEP_ID }),
  /** Of a step that says nothing itself. */
  limits: z
    .strictObject({
      /** Of all processes of an attempt. Missing: four fifths of what the agent itself may have. */
      memoryBytes: Bytes.optional(),
      /** Cores. Missing: not limited. */
      cpus: Cores.optional(),
      processes: Count.default(4096),
      openFiles: OpenFiles.default(1024),
      /** Of one file. */
      fileSizeBytes: Bytes.default(64 * 1024 * MiB),
      /** Of /tmp and of /dev/shm, which lie in memory. */
      tmpBytes: z.coerce
        .number()
        .int()
        .min(MiB)
        .default(256 * MiB),
    })
    .prefault({}),
  /** The most that a step may ask for. Missing: no more than it has without asking. */
  maxima: z
    .strictObject({
      memoryBytes: Bytes.optional(),
      cpus: Cores.optional(),
      processes: Count.optional(),
      openFiles: OpenFiles.optional(),
      fileSizeBytes: Bytes.optional(),
    })
    .prefault({}),
});
export type SandboxConfig = z.infer<typeof SandboxConfig>;
