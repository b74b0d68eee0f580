/**
 * What a person writes, in YAML or JSON. `specs.ts` turns it into what is stored.
 *
 * Descriptions end up in `docs/schema/` and so in editors. Every `error` is the end of a sentence that starts
 * with "must be".
 */
import { z } from "zod";
import { fromBase64 } from "../provenance/encoding.ts";
import {
  PIPELINE_ENVELOPES_MAX,
  PIPELINE_PAYLOAD,
  PIPELINE_SIGNATURES_MAX,
  STATEMENT_MAX_BYTES,
} from "../provenance/signed-pipeline.ts";
import { IMAGE_EXPECTED, isImage } from "./image.ts";
import { JURISDICTION_GROUPS, JURISDICTIONS, JURISDICTIONS_AS_OF } from "./jurisdictions.ts";
import { FIELD_PATTERN, NAME_PATTERN, VARIABLE_PATTERN } from "./names.ts";
import { CLASSIFICATIONS, SECRETS_MAX } from "./spec.ts";
import { parseTarget, TARGET_EXPECTED, TARGETS_MAX } from "./target.ts";
import {
  DURATION_EXPECTED,
  DURATION_PATTERN,
  durationMs,
  SIZE_EXPECTED,
  SIZE_PATTERN,
  sizeBytes,
} from "./units.ts";

export const API_VERSION = "insitu/v1";

const NAME_EXPECTED =
  "a name of lower-case letters, digits and '-', at most 63, that starts and ends with a letter or digit";
const FIELD_EXPECTED = "a name of letters, digits, '_' and '-', at most 63, that starts with a letter";
const TEXT_EXPECTED = "text, in quotes when it looks like a number";

const ResourceName = z.string({ error: NAME_EXPECTED }).regex(NAME_PATTERN, { error: NAME_EXPECTED });
const Field = z.string({ error: FIELD_EXPECTED }).regex(FIELD_PATTERN, { error: FIELD_EXPECTED });
const Text = z
  .string({ error: TEXT_EXPECTED })
  // Neither can be handed to a program, and a lone surrogate has no digest.
  .refine((text) => !/\0|\p{Surrogate}/u.test(text), { error: "text without NUL and half characters" });

const Names = z.union([ResourceName, z.array(ResourceName, { error: "a list of names" })], {
  error: "a name or a list of names",
});
const SomeNames = z.union(
  [ResourceName, z.array(ResourceName).min(1, { error: "a list of one name or more" })],
  { error: "a name or a list of names" },
);

const Duration = z
  .string({ error: DURATION_EXPECTED })
  // Aborts, so that what comes after is given durations alone.
  .regex(DURATION_PATTERN, { error: DURATION_EXPECTED, abort: true })
  .meta({ examples: ["30s", "5m", "2h"] });
const DURATION_MAX_EXPECTED = "a duration of at most 365d";
const DURATION_MAX_MS = durationMs("365d");
const UpToAYear = Duration.refine((text) => durationMs(text) <= DURATION_MAX_MS, {
  error: DURATION_MAX_EXPECTED,
});
const Positive = UpToAYear.refine((text) => durationMs(text) > 0, { error: "a duration above zero" });
const SIZE_MAX_BYTES = 2 ** 40;
const SIZE_MAX_EXPECTED = "a size of at most 1024GiB";
const Size = z.union(
  [
    z
      .int({ error: SIZE_EXPECTED })
      .min(1, { error: SIZE_EXPECTED })
      .max(SIZE_MAX_BYTES, { error: SIZE_MAX_EXPECTED }),
    z
      .string({ error: SIZE_EXPECTED })
      .regex(SIZE_PATTERN, { error: SIZE_EXPECTED, abort: true })
      .refine((text) => sizeBytes(text) <= SIZE_MAX_BYTES, { error: SIZE_MAX_EXPECTED }),
  ],
  { error: SIZE_EXPECTED },
);

const RELATIVE_EXPECTED = "a relative path below the document's directory, with '/' and without '..'";
/** Stays below its directory on every system: no root, no drive, no way up, no backslash. */
const RelativePath = Text.refine(isRelativePath, { error: RELATIVE_EXPECTED });

export function isRelativePath(path: string): boolean {
  if (path.length === 0 || path.length > 1_024 || /[\\:]|^\/|\/$/.test(path)) return false;
  const segments = path.split("/").filter((segment) => segment !== ".");
  // A key of that name is lost on the way through objects, and with it the file.
  const refused = ["", "..", "__proto__"];
  return segments.length > 0 && segments.every((segment) => !refused.includes(segment));
}

const MEMORY_EXPECTED = "a size from 16MiB to 1024GiB, such as 512MiB or 4GiB";
const MEMORY_MIN_BYTES = 16 * 1024 * 1024;
const CPU_EXPECTED = "a number of cores from 0.01 to 1024, such as 0.5 or 2";
const PROCESSES_EXPECTED = "a whole number from 1 to 1000000";
const FILE_SIZE_EXPECTED = "a size from 1KiB to 1024GiB, such as 100MiB";
const OPEN_FILES_EXPECTED = "a whole number from 16 to 1048576";
const wholeNumber = (min: number, max: number, expected: string) =>
  z.int({ error: expected }).min(min, { error: expected }).max(max, { error: expected });
const Resources = z.strictObject({
  memory: Size.refine((size) => isAtLeast(size, MEMORY_MIN_BYTES), { error: MEMORY_EXPECTED })
    .optional()
    .describe("Memory of all its processes, with what they keep in /tmp. Above it the kernel ends them"),
  cpu: z
    .number({ error: CPU_EXPECTED })
    .min(0.01, { error: CPU_EXPECTED })
    .max(1024, { error: CPU_EXPECTED })
    .optional()
    .describe("Processor time, in cores: 0.5 is half of one"),
  processes: wholeNumber(1, 1_000_000, PROCESSES_EXPECTED)
    .optional()
    .describe("Processes and threads at the same time"),
  fileSize: Size.refine((size) => isAtLeast(size, 1024), { error: FILE_SIZE_EXPECTED })
    .optional()
    .describe("Size of any one file that it writes"),
  openFiles: wholeNumber(16, 1_048_576, OPEN_FILES_EXPECTED)
    .optional()
    .describe("Open files of each process"),
});

/** What is no size is complained of as such. */
function isAtLeast(size: string | number, bytes: number): boolean {
  return (typeof size === "string" && !SIZE_PATTERN.test(size)) || sizeBytes(size) >= bytes;
}

const Output = z.strictObject({
  type: z
    .enum(["json", "text"], { error: "json or text" })
    .optional()
    .describe("What the file holds. Default json"),
  maxBytes: Size.optional().describe("Largest size that is taken. Default 64KiB"),
});
const Artifact = z.strictObject({
  path: RelativePath.describe("Path in the step's working directory"),
  maxBytes: Size.optional().describe("Largest size that is taken. Default 10MiB"),
});
const RETRIES_EXPECTED = "a whole number from 0 to 100";
const RetryCount = z
  .int({ error: RETRIES_EXPECTED })
  .min(0, { error: RETRIES_EXPECTED })
  .max(100, { error: RETRIES_EXPECTED });
const Retries = z.strictObject({
  max: RetryCount.describe("Further tries after the first"),
  backoff: UpToAYear.optional().describe("Delay before the first retry. Default 1s"),
  factor: z
    .number({ error: "a number from 1 to 10" })
    .min(1, { error: "a number from 1 to 10" })
    .max(10, { error: "a number from 1 to 10" })
    .optional()
    .describe("By how much each delay is longer than the one before. Default 2"),
  maxBackoff: UpToAYear.optional().describe("The longest delay. Default 1m"),
  jitter: z
    .number({ error: "a number from 0 to 1" })
    .min(0, { error: "a number from 0 to 1" })
    .max(1, { error: "a number from 0 to 1" })
    .optional()
    .describe(
      "Share of each delay that is drawn by chance, so that many steps do not retry at once. Default 0.2",
    ),
});

const THEN_EXPECTED = "reassign, wait or fail";
const Disconnect = z.strictObject({
  keep: UpToAYear.optional().describe(
    "How long the agent may be away after its lease has run out before 'then' applies. Default 0s",
  ),
  then: z
    .enum(["reassign", "wait", "fail"], { error: THEN_EXPECTED })
    .optional()
    .describe(
      "reassign: another agent gets the attempt. fail: the attempt has failed. wait: until the agent returns or an operator decides. Default reassign, and wait for a step with 'once'",
    ),
});

const ENV_EXPECTED = "a name of letters, digits and '_', that does not start with a digit";
const EnvName = z.string().regex(/^[A-Za-z_][A-Za-z0-9_]*$/, { error: ENV_EXPECTED });

const SECRET_EXPECTED = "a name of a secret, or a mapping with name and as";
const SECRETS_EXPECTED = `a list of names, or a mapping of variables to secrets; at most ${SECRETS_MAX}`;
const VARIABLE_EXPECTED = `${ENV_EXPECTED}, at most 63`;
const AS_EXPECTED = "file or env";
const Secret = z.strictObject({
  name: ResourceName.describe("Name under which the agents of the site know the secret"),
  as: z
    .enum(["file", "env"], { error: AS_EXPECTED })
    .optional()
    .describe(
      "file: a file in memory, whose path is in VARIABLE_FILE. env: the value in VARIABLE. Default file",
    ),
});
const Secrets = z.union(
  [
    z.array(ResourceName).min(1, { error: SECRETS_EXPECTED }).max(SECRETS_MAX, { error: SECRETS_EXPECTED }),
    z
      .record(
        z.string().regex(VARIABLE_PATTERN, { error: VARIABLE_EXPECTED }),
        z.union([ResourceName, Secret], { error: SECRET_EXPECTED }),
      )
      .refine((secrets) => Object.keys(secrets).length <= SECRETS_MAX, { error: SECRETS_EXPECTED }),
  ],
  { error: SECRETS_EXPECTED },
);

const TARGETS_EXPECTED = `a list of 1 to ${TARGETS_MAX} targets`;
const Network = z.strictObject({
  allow: z
    .array(
      z
        .string({ error: TARGET_EXPECTED })
        .refine((text) => parseTarget(text) !== undefined, { error: TARGET_EXPECTED })
        .meta({ examples: ["db.site.example:5432"] }),
      { error: TARGETS_EXPECTED },
    )
    .min(1, { error: TARGETS_EXPECTED })
    .max(TARGETS_MAX, { error: TARGETS_EXPECTED })
    .describe("host:port of each; the site must allow it as well"),
});

const WORDS_EXPECTED = "a list of one text or more";
const Words = z.array(Text, { error: WORDS_EXPECTED }).min(1, { error: WORDS_EXPECTED });
const Container = z.strictObject({
  image: z
    .string({ error: IMAGE_EXPECTED })
    .refine(isImage, { error: IMAGE_EXPECTED })
    .describe("name@sha256:digest of an image that has been imported at the site. A tag alone is not enough")
    .meta({ examples: [`registry.example/stats@sha256:${"4f53".repeat(16)}`] }),
  command: Words.optional().describe(
    "Program and arguments in place of the image's entrypoint. Default: what the image says",
  ),
  args: Words.optional().describe("Arguments in place of the image's own. Default: what the image says"),
});

export const StepDocument = z.strictObject({
  id: ResourceName.describe("Name of the step, unique in the pipeline"),
  description: Text.optional().describe("One line for people"),
  needs: Names.optional().describe("Steps that must have succeeded before this one starts"),
  run: z
    .union(
      [Text.min(1, { error: "a command" }), z.array(Text).min(1, { error: "a program and its arguments" })],
      {
        error: "a script (text) or a program with its arguments (a list of texts)",
      },
    )
    .optional()
    .describe(
      "Text is a script for 'sh -e'. A list is a program with its arguments, started without a shell",
    ),
  uses: z
    .enum(["noop"], { error: "noop" })
    .optional()
    .describe("A built-in in place of 'run': noop does nothing and succeeds"),
  container: Container.optional().describe(
    "A container image in place of 'run', under the same rules as a boxed process",
  ),
  env: z.record(EnvName, Text).optional().describe("Environment variables of the step"),
  secrets: Secrets.optional().describe(
    "Secrets that the agent resolves at its site, by variable. Only their names are stored. The short form [warehouse-password] is a file whose path is in WAREHOUSE_PASSWORD_FILE",
  ),
  files: z
    .array(RelativePath)
    .optional()
    .describe(
      "Text files, relative to this document, that lie in the working directory when the step starts",
    ),
  reads: Names.optional().describe(
    "Datasets that the step reads. It runs only where all of them may be read",
  ),
  writes: Names.optional().describe("Datasets that the step writes"),
  environment: SomeNames.optional().describe(
    "Narrows where the step may run. It never widens what policy allows",
  ),
  outputs: z
    .record(Field, Output.nullable())
    .optional()
    .describe(
      "Small values passed on to the steps that need this one: a file of that name in $INSITU_OUTPUT_DIR",
    ),
  artifacts: z
    .record(
      Field,
      z.union([RelativePath, Artifact], { error: "a path, or a mapping with path and maxBytes" }),
    )
    .optional()
    .describe("Files that are kept at the site, by name; the control plane learns their digests"),
  retries: z
    .union([RetryCount, Retries], { error: "a whole number from 0 to 100, or a mapping with max" })
    .optional()
    .describe("How often a failed attempt is tried again. Default 0"),
  timeout: Positive.optional().describe("How long one attempt may run. Default 1h"),
  unplaceable: UpToAYear.optional().describe(
    "How long the step waits for an environment that may run it. Default 5m",
  ),
  pools: SomeNames.optional().describe("Pools of which the step holds one place while it runs"),
  disconnect: Disconnect.optional().describe(
    "What becomes of an attempt whose agent is cut off. Default: what the environment says",
  ),
  once: z
    .boolean({ error: "true or false" })
    .optional()
    .describe(
      "true: never started a second time while it is unknown what became of the first. Default false",
    ),
  resources: Resources.optional().describe(
    "What an attempt may take of its host. Default, and at most: what the agent's configuration says",
  ),
  sandbox: z
    .literal("required", { error: "required" })
    .optional()
    .describe(
      "required: runs only where the agent boxes steps. Default: required where it reads data classed above what the agent's configuration lets run without, which is internal",
    ),
  network: Network.optional().describe(
    "Where the step is let out to; its agent must box it. Default: nowhere, where the agent boxes steps",
  ),
});
export type StepDocument = z.infer<typeof StepDocument>;

const PARAM_EXPECTED = "text, a number, true or false";
const ParamDocument = z.strictObject({
  type: z.enum(["string", "number", "boolean"], { error: "string, number or boolean" }),
  description: Text.optional().describe("One line for people"),
  default: z
    .union([Text, z.number(), z.boolean()], { error: PARAM_EXPECTED })
    .optional()
    .describe("Taken when a run gives no value. Without a default, each run must give one"),
  enum: z
    .array(z.union([Text, z.number()], { error: "text or a number" }))
    .min(1, { error: "a list of one value or more" })
    .optional()
    .describe("The values that are allowed"),
});

const head = <K extends string>(kind: K) => ({
  apiVersion: z.literal(API_VERSION, { error: API_VERSION }).optional().describe("Version of this format"),
  kind: z.literal(kind, { error: kind }),
  name: ResourceName.describe(`Name of the ${kind}, unique among its kind`),
  description: Text.optional().describe("One line for people"),
});
const OWNER_EXPECTED = "the name of a person or team";
const owner = z.string({ error: OWNER_EXPECTED }).min(1, { error: OWNER_EXPECTED }).pipe(Text);
const Owner = owner.optional().describe("The person or team that answers for it");

const SIGNATURES_EXPECTED = `a list of what \`insitu sign\` has written, at most ${PIPELINE_ENVELOPES_MAX}`;
const BASE64_EXPECTED = "base64, as `insitu sign` has written it";
const Base64 = z
  .string({ error: BASE64_EXPECTED })
  .max(STATEMENT_MAX_BYTES * 2, { error: BASE64_EXPECTED })
  .refine((text) => fromBase64(text) !== undefined, { error: BASE64_EXPECTED });
/** A DSSE envelope (github.com/secure-systems-lab/dsse). */
const Signature = z.strictObject({
  payloadType: z.literal(PIPELINE_PAYLOAD, { error: PIPELINE_PAYLOAD }).describe("What the payload is"),
  payload: Base64.describe("What is signed: name, version, parameters, a digest over all steps, and times"),
  signatures: z
    .array(
      z.strictObject({
        keyid: z
          .string({ error: "sha256: and 64 hexadecimal digits" })
          .regex(/^sha256:[0-9a-f]{64}$/, { error: "sha256: and 64 hexadecimal digits" })
          .describe("Digest of the public key"),
        sig: Base64.describe("The signature"),
      }),
    )
    .min(1, { error: SIGNATURES_EXPECTED })
    .max(PIPELINE_SIGNATURES_MAX, { error: SIGNATURES_EXPECTED }),
});

export const PipelineDocument = z
  .strictObject({
    ...head("pipeline"),
    owner: Owner,
    params: z.record(Field, ParamDocument).optional().describe("Values that each run is given"),
    timeout: Positive.optional().describe("How long a whole run may take. Without it, there is no limit"),
    files: z
      .record(RelativePath, Text)
      .optional()
      .describe("Text files by path, written out; steps name them in their 'files'"),
    steps: z
      .array(StepDocument, { error: "a list of steps" })
      .min(1, { error: "a list of one step or more" })
      .describe("The steps. Their order is that of 'needs', not that of writing"),
    signatures: z
      .array(Signature, { error: SIGNATURES_EXPECTED })
      .max(PIPELINE_ENVELOPES_MAX, { error: SIGNATURES_EXPECTED })
      .optional()
      .describe(
        "Who has signed the pipeline as it stands here; written by `insitu sign`. They are no part of its version",
      ),
  })
  .describe("Steps and what they need of each other");
export type PipelineDocument = z.infer<typeof PipelineDocument>;

const RESIDENCY = [...JURISDICTION_GROUPS.keys(), ...JURISDICTIONS];
const RESIDENCY_EXPECTED = "an ISO 3166-1 alpha-2 country code in capitals, EU or EEA";
const Residency = z.enum(RESIDENCY, { error: RESIDENCY_EXPECTED });

export const DatasetDocument = z
  .strictObject({
    ...head("dataset"),
    owner: owner.describe("The person or team that answers for the data"),
    classification: z
      .enum(CLASSIFICATIONS, { error: `one of ${CLASSIFICATIONS.join(", ")}` })
      .describe(
        "How sensitive it is. Above internal, logs and error text of steps that read it stay at the site",
      ),
    residency: z
      .union([Residency, z.array(Residency).min(1, { error: "a list of one country or more" })], {
        error: `${RESIDENCY_EXPECTED}, or a list of them`,
      })
      .describe(
        `Where it may be processed: country codes (ISO 3166-1 alpha-2), EU or EEA, as they were on ${JURISDICTIONS_AS_OF}`,
      ),
    environments: Names.describe("The environments that hold it"),
  })
  .describe("A named body of data: whose it is, how sensitive, where it may be processed, where it lies");
export type DatasetDocument = z.infer<typeof DatasetDocument>;

const VALID_FOR_MIN_MS = durationMs("1h");
const VALID_FOR_EXPECTED = "a duration of 1h to 365d";
const Identity = z.strictObject({
  validFor: Duration.refine(
    (text) => durationMs(text) >= VALID_FOR_MIN_MS && durationMs(text) <= DURATION_MAX_MS,
    { error: VALID_FOR_EXPECTED },
  ).describe(
    "How long a certificate of an agent is good. It is renewed at two thirds of that; an agent that is cut off for longer than the last third comes back when somebody approves it",
  ),
});

export const EnvironmentDocument = z
  .strictObject({
    ...head("environment"),
    owner: Owner,
    jurisdiction: z
      .enum(JURISDICTIONS, { error: "an ISO 3166-1 alpha-2 country code in capitals, such as DE" })
      .describe("Country whose law applies at the site (ISO 3166-1 alpha-2)"),
    labels: z.record(Text, Text).optional().describe("Anything else that people want to tell sites apart by"),
    disconnect: Disconnect.optional().describe(
      "What becomes of an attempt whose agent is cut off, for steps that do not say it themselves",
    ),
    identity: Identity.optional().describe("Of the agents of the site"),
  })
  .describe("A site with its own network, jurisdiction and data");
export type EnvironmentDocument = z.infer<typeof EnvironmentDocument>;

const CAPACITY_EXPECTED = "a whole number from 0 to 1000000";
export const PoolDocument = z
  .strictObject({
    ...head("pool"),
    owner: Owner,
    capacity: z
      .int({ error: CAPACITY_EXPECTED })
      .min(0, { error: CAPACITY_EXPECTED })
      .max(1_000_000, { error: CAPACITY_EXPECTED })
      .describe("How many attempts may hold it at once, over all runs. 0 stops them all"),
  })
  .describe("A limited resource that steps share");
export type PoolDocument = z.infer<typeof PoolDocument>;

const RULES_MAX = 100;
const RULE_MAX_LENGTH = 16 * 1024;
const RULES_EXPECTED = `a mapping of names to rules in Cedar, from 1 to ${RULES_MAX}`;
const RULE_EXPECTED = `the text of one Cedar policy, at most ${RULE_MAX_LENGTH} characters`;
export const AccessPolicyDocument = z
  .strictObject({
    ...head("access-policy"),
    owner: Owner,
    rules: z
      .record(
        ResourceName,
        z.string({ error: RULE_EXPECTED }).max(RULE_MAX_LENGTH, { error: RULE_EXPECTED }).pipe(Text),
        { error: RULES_EXPECTED },
      )
      .refine((rules) => Object.keys(rules).length >= 1 && Object.keys(rules).length <= RULES_MAX, {
        error: RULES_EXPECTED,
      })
      .describe("One Cedar policy each, by the name that refusals and `insitu auth can-i` give"),
  })
  .describe(
    "Who may do what, in Cedar: grants to people and groups beyond their roles, and what is forbidden",
  );
export type AccessPolicyDocument = z.infer<typeof AccessPolicyDocument>;

export const DOCUMENT_SCHEMAS = {
  pipeline: PipelineDocument,
  dataset: DatasetDocument,
  environment: EnvironmentDocument,
  pool: PoolDocument,
  "access-policy": AccessPolicyDocument,
} as const;
/** Any document, told apart by its `kind`. */
export const AnyDocument = z.discriminatedUnion("kind", [
  PipelineDocument,
  DatasetDocument,
  EnvironmentDocument,
  PoolDocument,
  AccessPolicyDocument,
]);
export type AnyDocument = z.infer<typeof AnyDocument>;
