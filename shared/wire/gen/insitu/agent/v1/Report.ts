// Original file: proto/insitu/agent/v1/agent.proto

import type { Long } from '@grpc/proto-loader';

export interface Report {
  'seq'?: (number | string | Long);
  'payload'?: (Buffer | Uint8Array | string);
  'signature'?: (Buffer | Uint8Array | string);
  'keyId'?: (string);
}

export interface Report__Output {
  'seq': (string);
  'payload': (Buffer);
  'signature': (Buffer);
  'keyId': (string);
}
