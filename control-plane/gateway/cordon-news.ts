/** What an agent is told of its cordon: with its welcome, with every answer to a heartbeat, and at once when it changes. */
import type { Cordon } from "../../shared/wire/gen/insitu/agent/v1/Cordon.ts";
import type { AgentRecord } from "../fleet/agent-record.ts";

/** As the record has it. The agent takes what is newer than what it knows, so a replica that lags says nothing wrong. */
export function cordonNews(record: Pick<AgentRecord, "cordon" | "cordonRevision"> | undefined): Cordon {
  const cordon = record?.cordon ?? null;
  return {
    revision: String(record?.cordonRevision ?? 0),
    cordoned: cordon !== null,
    by: cordon?.by ?? "",
    reason: cordon?.reason ?? "",
    drainDeadlineMs: String(cordon?.drain?.deadlineMs ?? 0),
    drainOnce: cordon?.drain?.once ?? false,
  };
}
