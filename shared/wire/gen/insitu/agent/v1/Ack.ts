// Original file: proto/insitu/agent/v1/agent.proto

import type { Rejected as _insitu_agent_v1_Rejected, Rejected__Output as _insitu_agent_v1_Rejected__Output } from '../../../insitu/agent/v1/Rejected.ts';
import type { Long } from '@grpc/proto-loader';

export interface Ack {
  'ackedSeq'?: (number | string | Long);
  'rejected'?: (_insitu_agent_v1_Rejected)[];
}

export interface Ack__Output {
  'ackedSeq': (string);
  'rejected': (_insitu_agent_v1_Rejected__Output)[];
}
