/** The shape of a site's policy file. What it does not name, it does not allow. */
import { z } from "zod";
import { Digest } from "../../shared/model/names.ts";
import { CLASSIFICATIONS } from "../../shared/model/spec.ts";
import {
  DURATION_EXPECTED,
  DURATION_PATTERN,
  durationMs,
  SIZE_EXPECTED,
  SIZE_PATTERN,
  sizeBytes,
} from "../../shared/model/units.ts";
import { PUBLIC_KEY_EXPECTED, readPublicKey } from "../../shared/provenance/author-key.ts";
import { isTargetRule, TARGET_RULE_EXPECTED } from "./target-rule.ts";

export const DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"] as const;
export type Day = (typeof DAYS)[number];

const ENTRIES_MAX = 1_000;
const PATTERN_MAX_CHARS = 1_000;

/** Text in which `*` stands for any characters, none included. */
const Pattern = z.string().min(1).max(PATTERN_MAX_CHARS);
/** A key without a value is an empty list: what is not named is not allowed. */
function listOf<T extends z.ZodType>(item: T) {
  return z
    .array(item)
    .max(ENTRIES_MAX)
    .nullable()
    .default([])
    .transform((items) => items ?? []);
}
const patterns = listOf(Pattern);

/** The last item `**` of a command stands for any further arguments. */
export const ANY_ARGUMENTS = "**";

const Command = z
  .array(z.string().max(PATTERN_MAX_CHARS))
  .min(1)
  .max(100)
  .refine((items) => items[0] !== ANY_ARGUMENTS && items[0] !== "", "the first item is the program")
  .refine(
    (items) => !items.slice(0, -1).includes(ANY_ARGUMENTS),
    `${ANY_ARGUMENTS} stands for all further arguments, so it comes last`,
  );

const FileRule = z.union([
  Pattern.transform((path) => ({ path, sha256: undefined as string | undefined })),
  z.strictObject({ path: Pattern, sha256: Digest.optional() }),
]);

const DatasetRule = z.union([
  Pattern.transform((name) => ({
    name,
    access: "read" as "read" | "read-write",
    owner: undefined as string | undefined,
    classification: "public" as (typeof CLASSIFICATIONS)[number],
  })),
  z.strictObject({
    name: Pattern,
    access: z.enum(["read", "read-write"]).default("read"),
    /** Who has to answer for it at the centre. */
    owner: Pattern.optional(),
    /** The class that an offer must state at the least: by it is decided what leaves the site. */
    classification: z.enum(CLASSIFICATIONS).default("public"),
  }),
]);

const Minute = z
  .string()
  .regex(/^(([01]\d|2[0-3]):[0-5]\d|24:00)$/, "a time of day in quotes, from 00:00 to 24:00")
  .transform((text) => Number(text.slice(0, 2)) * 60 + Number(text.slice(3)));

const HoursRule = z
  .strictObject({
    /** On which the time begins; past midnight it goes on into the next. */
    days: z
      .array(z.enum(DAYS))
      .min(1)
      .default([...DAYS]),
    from: Minute,
    to: Minute,
    zone: z.string().refine(isZone, "an IANA time zone, like Europe/Zurich"),
  })
  .refine(
    ({ from, to }) => from !== to && from < 24 * 60 && to > 0,
    "from and to leave no time between them",
  );

const Milliseconds = z.string().regex(DURATION_PATTERN, DURATION_EXPECTED).transform(durationMs);
const Bytes = z
  .union([z.int().min(0), z.string().regex(SIZE_PATTERN, SIZE_EXPECTED)])
  .transform((size) => sizeBytes(size));

const KEYS_MAX = 100;

const PublicKey = z.string({ error: PUBLIC_KEY_EXPECTED }).transform((pem, context) => {
  const key = readPublicKey(pem);
  if (key !== undefined) return key;
  context.addIssue({ code: "custom", message: PUBLIC_KEY_EXPECTED });
  return z.NEVER;
});

const SignedPipelinesRule = z
  .strictObject({
    keys: z
      .array(
        z.strictObject({
          /** For people. */
          name: z.string().min(1).max(PATTERN_MAX_CHARS),
          publicKey: PublicKey,
          /** That it may sign. */
          pipelines: z.array(Pattern).min(1).max(ENTRIES_MAX),
        }),
      )
      .max(KEYS_MAX),
    maxAge: Milliseconds.optional(),
  })
  .refine(
    ({ keys }) => new Set(keys.map(({ publicKey }) => publicKey.id)).size === keys.length,
    "one entry for each key: the same one is there twice",
  );

export const SiteRules = z.strictObject({
  /** Of this format. */
  version: z.literal(1, "1, the only format that this agent knows"),
  pipelines: patterns,
  /** Missing: signatures are not looked at. */
  signedPipelines: SignedPipelinesRule.optional(),
  /** Persons and teams that may answer for a pipeline that runs here. Missing: anybody, and nobody. */
  owners: z
    .array(Pattern)
    .max(ENTRIES_MAX)
    .nullable()
    .optional()
    .transform((items) => (items === null ? [] : items)),
  executors: patterns,
  /** Container images, by digest. */
  images: listOf(Digest),
  commands: listOf(Command),
  /** Files that steps bring along. */
  files: listOf(FileRule),
  /** Names of environment variables that steps bring along. */
  env: patterns,
  datasets: listOf(DatasetRule),
  /** Where steps may be let out to. */
  egress: listOf(z.string().refine(isTargetRule, TARGET_RULE_EXPECTED)),
  /** Missing: at any time. */
  hours: z.array(HoursRule).min(1).max(ENTRIES_MAX).optional(),
  /** A file with Cedar policies, by its path from this one. What they do not permit is refused as well. */
  cedar: z.string().min(1).optional(),
  /** Missing: as much as the step says. */
  maximum: z
    .strictObject({
      timeout: Milliseconds.optional(),
      /** Of all outputs of a step together; they leave the site. */
      outputBytes: Bytes.optional(),
      /** Of all artifacts of a step together; they stay at the site. */
      artifactBytes: Bytes.optional(),
      // What a step's `resources` call them. A step that says nothing of one that is named here is refused.
      memory: Bytes.optional(),
      /** Cores. */
      cpu: z.number().positive().optional(),
      processes: z.int().min(1).optional(),
      openFiles: z.int().min(1).optional(),
      /** Of any one file. */
      fileSize: Bytes.optional(),
    })
    .prefault({}),
});
export type SiteRules = z.infer<typeof SiteRules>;
export type HoursRule = z.infer<typeof HoursRule>;

function isZone(zone: string): boolean {
  try {
    new Intl.DateTimeFormat("en-US", { timeZone: zone });
    // Offsets like +02:00 know no summer time, and are not of the tz database.
    return /^[A-Za-z]/.test(zone);
  } catch {
    return false;
  }
}
