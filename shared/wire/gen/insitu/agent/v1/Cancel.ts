// Original file: proto/insitu/agent/v1/agent.proto

import type { Lease as _insitu_agent_v1_Lease, Lease__Output as _insitu_agent_v1_Lease__Output } from '../../../insitu/agent/v1/Lease.ts';

export interface Cancel {
  'lease'?: (_insitu_agent_v1_Lease | null);
  'reason'?: (string);
}

export interface Cancel__Output {
  'lease': (_insitu_agent_v1_Lease__Output | null);
  'reason': (string);
}
