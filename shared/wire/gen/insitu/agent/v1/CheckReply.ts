// Original file: proto/insitu/agent/v1/agent.proto

import type { Version as _insitu_agent_v1_Version, Version__Output as _insitu_agent_v1_Version__Output } from '../../../insitu/agent/v1/Version.ts';
import type { Long } from '@grpc/proto-loader';

export interface CheckReply {
  'version'?: (_insitu_agent_v1_Version | null);
  'wallMs'?: (number | string | Long);
  'replicaId'?: (string);
}

export interface CheckReply__Output {
  'version': (_insitu_agent_v1_Version__Output | null);
  'wallMs': (string);
  'replicaId': (string);
}
