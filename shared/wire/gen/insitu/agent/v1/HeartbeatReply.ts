// Original file: proto/insitu/agent/v1/agent.proto

import type { Lease as _insitu_agent_v1_Lease, Lease__Output as _insitu_agent_v1_Lease__Output } from '../../../insitu/agent/v1/Lease.ts';
import type { Cancel as _insitu_agent_v1_Cancel, Cancel__Output as _insitu_agent_v1_Cancel__Output } from '../../../insitu/agent/v1/Cancel.ts';
import type { LedgerCheckpoint as _insitu_agent_v1_LedgerCheckpoint, LedgerCheckpoint__Output as _insitu_agent_v1_LedgerCheckpoint__Output } from '../../../insitu/agent/v1/LedgerCheckpoint.ts';
import type { Cordon as _insitu_agent_v1_Cordon, Cordon__Output as _insitu_agent_v1_Cordon__Output } from '../../../insitu/agent/v1/Cordon.ts';
import type { Long } from '@grpc/proto-loader';

export interface HeartbeatReply {
  'seq'?: (number | string | Long);
  'renewed'?: (_insitu_agent_v1_Lease)[];
  'cancels'?: (_insitu_agent_v1_Cancel)[];
  'superseded'?: (_insitu_agent_v1_Lease)[];
  'cordoned'?: (boolean);
  'gateways'?: (string)[];
  'wallMs'?: (number | string | Long);
  'ledger'?: (_insitu_agent_v1_LedgerCheckpoint | null);
  'cordon'?: (_insitu_agent_v1_Cordon | null);
}

export interface HeartbeatReply__Output {
  'seq': (string);
  'renewed': (_insitu_agent_v1_Lease__Output)[];
  'cancels': (_insitu_agent_v1_Cancel__Output)[];
  'superseded': (_insitu_agent_v1_Lease__Output)[];
  'cordoned': (boolean);
  'gateways': (string)[];
  'wallMs': (string);
  'ledger': (_insitu_agent_v1_LedgerCheckpoint__Output | null);
  'cordon': (_insitu_agent_v1_Cordon__Output | null);
}
