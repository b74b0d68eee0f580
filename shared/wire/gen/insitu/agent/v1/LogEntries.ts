// Original file: proto/insitu/agent/v1/agent.proto

import type { LogEntry as _insitu_agent_v1_LogEntry, LogEntry__Output as _insitu_agent_v1_LogEntry__Output } from '../../../insitu/agent/v1/LogEntry.ts';

export interface LogEntries {
  'entries'?: (_insitu_agent_v1_LogEntry)[];
}

export interface LogEntries__Output {
  'entries': (_insitu_agent_v1_LogEntry__Output)[];
}
