// Original file: proto/insitu/agent/v1/agent.proto

import type { RootsSignature as _insitu_agent_v1_RootsSignature, RootsSignature__Output as _insitu_agent_v1_RootsSignature__Output } from '../../../insitu/agent/v1/RootsSignature.ts';
import type { Long } from '@grpc/proto-loader';

export interface Roots {
  'revision'?: (number | string | Long);
  'caPem'?: (Buffer | Uint8Array | string);
  'issuerPin'?: (string);
  'signatures'?: (_insitu_agent_v1_RootsSignature)[];
}

export interface Roots__Output {
  'revision': (string);
  'caPem': (Buffer);
  'issuerPin': (string);
  'signatures': (_insitu_agent_v1_RootsSignature__Output)[];
}
