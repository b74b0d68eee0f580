/** What this build speaks on the agent protocol. See `Version` in agent.proto. */
export const PROTOCOL_MAJOR = 1;
export const PROTOCOL_MINOR = 0;
export const SOFTWARE_VERSION = "0.1.0";
/** Largest payload of one report. */
export const REPORT_MAX_BYTES = 1024 * 1024;
/** Largest encoded `LogEntries` of one chunk, before compression. */
export const LOG_CHUNK_MAX_BYTES = 64 * 1024;
/** Sum of the outputs of one attempt, and of the inputs of one offer. */
export const OUTPUTS_MAX_BYTES = 512 * 1024;
/** Of a server that takes one signature for all reports of a batch. See `ReportBatch` in agent.proto. */
export const CAPABILITY_REPORT_BATCH = "reports.batch";
