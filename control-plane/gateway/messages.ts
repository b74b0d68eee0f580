/** What agents send, once it has been looked at. The wire's own types let through anything that protobuf can hold. */
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import { Digest, Name } from "../../shared/model/names.ts";
import { LeaseKey, ReportPayload } from "../../shared/wire/attempt.ts";
import type { Heartbeat__Output } from "../../shared/wire/gen/insitu/agent/v1/Heartbeat.ts";
import type { HeldRoots__Output } from "../../shared/wire/gen/insitu/agent/v1/HeldRoots.ts";
import type { Hello__Output } from "../../shared/wire/gen/insitu/agent/v1/Hello.ts";
import type { LogChunk__Output } from "../../shared/wire/gen/insitu/agent/v1/LogChunk.ts";
import type { RefusedOffer__Output } from "../../shared/wire/gen/insitu/agent/v1/RefusedOffer.ts";
import type { Version__Output } from "../../shared/wire/gen/insitu/agent/v1/Version.ts";
import { LOG_CHUNK_MAX_BYTES, PROTOCOL_MAJOR, REPORT_MAX_BYTES } from "../../shared/wire/protocol.ts";
import type { AgentHello, AgentPulse } from "../fleet/fleet-service.ts";
import type { LogChunk } from "./ports.ts";
import type { AnnouncedKey } from "./report-keys.ts";
import type { HeldRoots } from "./root-news.ts";

const HELD_MAX = 10_000;
const LIST_MAX = 1_000;
/** Of a public key in SPKI, and of a signature in DER. */
const KEY_MAX_BYTES = 256;
/** Compression can make a chunk a little larger. */
const LOG_ENTRIES_MAX_BYTES = LOG_CHUNK_MAX_BYTES + 16 * 1024;

/** 64-bit numbers come as decimal text. Ours stay below 2^53. */
const Count = z
  .string()
  .regex(/^\d{1,16}$/)
  .transform(Number)
  .refine(Number.isSafeInteger, "at most 2^53 - 1");
/** Run ids become parts of subjects, so they hold nothing that means something there. */
const RunId = z.string().regex(/^[0-9A-Za-z_-]{1,64}$/, "1 to 64 letters, digits, '-' or '_'");
const Held = z.array(LeaseKey.extend({ runId: RunId })).max(HELD_MAX);
const Text = z.string().max(1_000);

const SitePolicy = z.object({ digest: z.union([z.literal(""), Digest]), trouble: Text }).nullish();
const Words = z
  .record(Text, Text)
  .refine((words) => Object.keys(words).length <= LIST_MAX, "too many entries");

const Hello = z.object({
  slots: z.int().min(0).max(HELD_MAX),
  executors: z.array(Text).max(LIST_MAX),
  datasets: z.array(Text).max(LIST_MAX),
  labels: z.record(Text, Text).refine((labels) => Object.keys(labels).length <= LIST_MAX, "too many labels"),
  hostname: Text,
  instanceId: Text.min(1),
  held: Held,
  sitePolicy: SitePolicy,
  sandbox: z
    .object({
      boxes: z.boolean(),
      summary: Text,
      held: Words,
      notHeld: Words,
      unboxedUpTo: Text,
      letsOut: z.boolean(),
      runsContainers: z.boolean(),
    })
    .nullish(),
  cordonRevision: Count,
});

const Heartbeat = z.object({
  seq: Count,
  sentAtMs: Count,
  held: Held,
  freeSlots: z.int().min(0),
  spoolBytes: Count,
  droppedLogBytes: Count,
  notTakingWork: Text,
  sitePolicy: SitePolicy,
  refusedOffers: Count,
  ledger: z.object({ size: Count, trouble: Text }).nullish(),
  cordonRevision: Count,
});

const LogChunkShape = z.object({
  seq: Count,
  runId: RunId,
  stepId: Name,
  attempt: z.int().min(1),
  epoch: z.int().min(1),
  firstEntry: z.int().min(1),
  entryCount: z.int().min(1),
  encoding: z.enum(["identity", "gzip"]),
  entries: z.instanceof(Uint8Array).refine((b) => b.length <= LOG_ENTRIES_MAX_BYTES, "too large"),
});

/** @throws InsituError `protocol.incompatible`, with the side that is to be upgraded. */
export function checkVersion(version: Version__Output | null | undefined): void {
  const major = version?.major ?? 0;
  if (major === PROTOCOL_MAJOR) return;
  const older = major < PROTOCOL_MAJOR ? "the agent" : "the server";
  throw new InsituError(
    "protocol.incompatible",
    `the agent (${version?.software || "unknown software"}) speaks protocol ${major} and this server speaks ${PROTOCOL_MAJOR}: upgrade ${older}`,
    { details: { agentMajor: major, serverMajor: PROTOCOL_MAJOR } },
  );
}

/** @throws InsituError `request.invalid`. */
export function parseHello(message: Hello__Output): AgentHello {
  const hello = parse(Hello, message, "hello");
  return {
    ...hello,
    sandbox: hello.sandbox ?? null,
    software: (message.version?.software ?? "").slice(0, 1_000),
  };
}

const KeyBytes = z.instanceof(Uint8Array).refine((b) => b.length <= KEY_MAX_BYTES, "too large");
const AnnouncedReportKey = z.object({ publicKey: KeyBytes, proof: KeyBytes });

/** @throws InsituError `request.invalid`. */
export function parseReportKey(message: Hello__Output): AnnouncedKey {
  const { reportPublicKey: publicKey, reportKeyProof: proof } = message;
  return parse(AnnouncedReportKey, { publicKey, proof }, "key of the hello");
}

const Roots = z
  .object({ revision: Count, pins: z.array(z.string().regex(/^sha256:[0-9a-f]{64}$/)).max(64) })
  .nullish();

/** Null from an agent that says nothing of them. @throws InsituError `request.invalid`. */
export function parseRoots(message: HeldRoots__Output | null | undefined): HeldRoots | null {
  return parse(Roots, message, "roots") ?? null;
}

/** @throws InsituError `request.invalid`. */
export function parseHeartbeat(message: Heartbeat__Output): AgentPulse & { seq: number } {
  return parse(Heartbeat, message, "heartbeat");
}

const RefusedOffer = z.object({
  payload: z.instanceof(Uint8Array).refine((b) => b.length <= REPORT_MAX_BYTES, "too large"),
  reason: Text,
});

/** The bytes are copied: the ones that came lie in a receive buffer. @throws InsituError `request.invalid`. */
export function parseRefusedOffer(message: RefusedOffer__Output): { payload: Uint8Array; reason: string } {
  const { payload, reason } = parse(RefusedOffer, message, "refused offer");
  return { payload: Uint8Array.from(payload), reason };
}

const Seq = Count.refine((n) => n >= 1, "at least 1");

/** A sequence number of a report or a log chunk. @throws InsituError `request.invalid`. */
export function parseSeq(seq: string): number {
  return parse(Seq, seq, "sequence");
}

/** @throws InsituError `request.invalid`, `request.too-large`: nothing that sending it again would mend. */
export function parseReport(payload: Uint8Array): ReportPayload {
  if (payload.length > REPORT_MAX_BYTES) {
    throw new InsituError(
      "request.too-large",
      `a report has at most ${REPORT_MAX_BYTES} bytes, this one has ${payload.length}`,
    );
  }
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(payload));
  } catch (err) {
    throw new InsituError("request.invalid", "the report is not JSON in UTF-8", { cause: err });
  }
  const report = parse(ReportPayload, json, "report");
  parse(RunId, report.lease.runId, "run id of the report");
  return report;
}

/** The bytes are copied: the ones that came lie in a receive buffer. @throws InsituError `request.invalid`. */
export function parseLogChunk(message: LogChunk__Output): LogChunk {
  const chunk = parse(LogChunkShape, message, "log chunk");
  return { ...chunk, entries: Uint8Array.from(chunk.entries) };
}

function parse<T>(schema: z.ZodType<T, unknown>, value: unknown, what: string): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw new InsituError(
    "request.invalid",
    `the ${what} is malformed at ${issue?.path.join(".") || "its root"}: ${issue?.message ?? ""}`,
  );
}
