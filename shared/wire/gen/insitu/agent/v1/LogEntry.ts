// Original file: proto/insitu/agent/v1/agent.proto

import type { Stream as _insitu_agent_v1_Stream, Stream__Output as _insitu_agent_v1_Stream__Output } from '../../../insitu/agent/v1/Stream.ts';
import type { Long } from '@grpc/proto-loader';

export interface LogEntry {
  'seq'?: (number);
  'atMs'?: (number | string | Long);
  'stream'?: (_insitu_agent_v1_Stream);
  'data'?: (Buffer | Uint8Array | string);
  'droppedBytes'?: (number | string | Long);
  'droppedLines'?: (number | string | Long);
}

export interface LogEntry__Output {
  'seq': (number);
  'atMs': (string);
  'stream': (_insitu_agent_v1_Stream__Output);
  'data': (Buffer);
  'droppedBytes': (string);
  'droppedLines': (string);
}
