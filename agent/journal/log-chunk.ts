import type { LeaseKey } from "../../shared/wire/attempt.ts";
import type { LogEncoding } from "../../shared/wire/log-codec.ts";

/** Some entries of one attempt's log, as they are spooled and sent. */
export interface LogChunkRecord {
  seq: number;
  lease: LeaseKey;
  firstEntry: number;
  entryCount: number;
  encoding: LogEncoding;
  entries: Buffer;
  /** Wall time of the first entry. */
  atMs: number;
  /** Bytes that the step wrote, before encoding. */
  contentBytes: number;
  /** Set when the content gave way to the quota. */
  dropped?: boolean;
}
