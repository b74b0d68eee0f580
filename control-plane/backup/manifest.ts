/** What a backup says of itself: the last members of its file. */
import { z } from "zod";

export const FORMAT = 1;
export const MANIFEST = "manifest.json";
export const MANIFEST_DIGEST = "manifest.json.sha256";
export const SECRETS = "secrets.json";
/** Far more than a manifest of a thousand parts takes. */
export const MANIFEST_MAX_BYTES = 4 * 1024 * 1024;

const Name = z.string().regex(/^[A-Za-z0-9_-]{1,60}$/);

const Stream = z.object({
  name: Name,
  /** When its reading began: it holds everything that was acknowledged before. */
  readAtMs: z.int(),
  messages: z.int(),
  firstSeq: z.int(),
  lastSeq: z.int(),
  /** Of the messages as the server counts them; the backup holds them compressed. */
  bytes: z.int(),
  /** As the server gave it, and as it is given back. */
  config: z.record(z.string(), z.unknown()),
  state: z.record(z.string(), z.unknown()),
  /** Members with the server's own snapshot, in order. */
  parts: z.array(z.string()),
});
export type StreamEntry = z.infer<typeof Stream>;

export const Manifest = z.object({
  format: z.literal(FORMAT),
  software: z.string(),
  natsServer: z.string(),
  /** What was acknowledged before this moment is in the backup. */
  takenAtMs: z.int(),
  /** In the order in which they were read. */
  streams: z.array(Stream),
  secrets: z.boolean(),
  members: z.array(
    z.object({ name: z.string(), bytes: z.int(), sha256: z.string().regex(/^[0-9a-f]{64}$/) }),
  ),
});
export type Manifest = z.infer<typeof Manifest>;

/** In the form of sha256sum. */
export function digestLine(sha256: string): string {
  return `${sha256}  ${MANIFEST}\n`;
}

export function partName(stream: string, part: number): string {
  return `streams/${stream}.${String(part).padStart(4, "0")}`;
}
