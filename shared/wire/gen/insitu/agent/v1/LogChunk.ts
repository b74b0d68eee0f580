// Original file: proto/insitu/agent/v1/agent.proto

import type { Long } from '@grpc/proto-loader';

export interface LogChunk {
  'seq'?: (number | string | Long);
  'runId'?: (string);
  'stepId'?: (string);
  'attempt'?: (number);
  'epoch'?: (number);
  'firstEntry'?: (number);
  'entryCount'?: (number);
  'encoding'?: (string);
  'entries'?: (Buffer | Uint8Array | string);
}

export interface LogChunk__Output {
  'seq': (string);
  'runId': (string);
  'stepId': (string);
  'attempt': (number);
  'epoch': (number);
  'firstEntry': (number);
  'entryCount': (number);
  'encoding': (string);
  'entries': (Buffer);
}
