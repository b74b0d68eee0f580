/** What a log chunk holds once decoded; see `LogEntry` in agent.proto. */
export const LOG_STREAMS = ["stdout", "stderr", "agent"] as const;
export type LogStreamName = (typeof LOG_STREAMS)[number];

export interface LogEntry {
  /** Within the attempt under one epoch, from 1, over all streams. */
  seq: number;
  atMs: number;
  stream: LogStreamName;
  data: Uint8Array;
  droppedBytes: number;
  /** Ends of lines among the dropped bytes. Absent: not known, or none. */
  droppedLines?: number;
}
