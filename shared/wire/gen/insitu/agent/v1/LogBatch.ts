// Original file: proto/insitu/agent/v1/agent.proto

import type { LogChunk as _insitu_agent_v1_LogChunk, LogChunk__Output as _insitu_agent_v1_LogChunk__Output } from '../../../insitu/agent/v1/LogChunk.ts';

export interface LogBatch {
  'chunks'?: (_insitu_agent_v1_LogChunk)[];
  'signature'?: (Buffer | Uint8Array | string);
  'keyId'?: (string);
}

export interface LogBatch__Output {
  'chunks': (_insitu_agent_v1_LogChunk__Output)[];
  'signature': (Buffer);
  'keyId': (string);
}
