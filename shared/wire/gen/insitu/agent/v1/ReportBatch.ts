// Original file: proto/insitu/agent/v1/agent.proto

import type { Report as _insitu_agent_v1_Report, Report__Output as _insitu_agent_v1_Report__Output } from '../../../insitu/agent/v1/Report.ts';

export interface ReportBatch {
  'reports'?: (_insitu_agent_v1_Report)[];
  'signature'?: (Buffer | Uint8Array | string);
  'keyId'?: (string);
}

export interface ReportBatch__Output {
  'reports': (_insitu_agent_v1_Report__Output)[];
  'signature': (Buffer);
  'keyId': (string);
}
