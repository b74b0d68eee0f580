// Original file: proto/insitu/agent/v1/agent.proto

import type { Version as _insitu_agent_v1_Version, Version__Output as _insitu_agent_v1_Version__Output } from '../../../insitu/agent/v1/Version.ts';
import type { NatsAccess as _insitu_agent_v1_NatsAccess, NatsAccess__Output as _insitu_agent_v1_NatsAccess__Output } from '../../../insitu/agent/v1/NatsAccess.ts';
import type { Cordon as _insitu_agent_v1_Cordon, Cordon__Output as _insitu_agent_v1_Cordon__Output } from '../../../insitu/agent/v1/Cordon.ts';
import type { Long } from '@grpc/proto-loader';

export interface Welcome {
  'version'?: (_insitu_agent_v1_Version | null);
  'heartbeatMs'?: (number);
  'leaseTtlMs'?: (number);
  'nats'?: (_insitu_agent_v1_NatsAccess | null);
  'wallMs'?: (number | string | Long);
  'offerPublicKeyPem'?: (Buffer | Uint8Array | string);
  'replicaId'?: (string);
  'gateways'?: (string)[];
  'cordon'?: (_insitu_agent_v1_Cordon | null);
}

export interface Welcome__Output {
  'version': (_insitu_agent_v1_Version__Output | null);
  'heartbeatMs': (number);
  'leaseTtlMs': (number);
  'nats': (_insitu_agent_v1_NatsAccess__Output | null);
  'wallMs': (string);
  'offerPublicKeyPem': (Buffer);
  'replicaId': (string);
  'gateways': (string)[];
  'cordon': (_insitu_agent_v1_Cordon__Output | null);
}
