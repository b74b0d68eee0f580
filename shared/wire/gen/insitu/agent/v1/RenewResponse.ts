// Original file: proto/insitu/agent/v1/agent.proto

import type { Long } from '@grpc/proto-loader';

export interface RenewResponse {
  'certificatePem'?: (Buffer | Uint8Array | string);
  'notAfterMs'?: (number | string | Long);
}

export interface RenewResponse__Output {
  'certificatePem': (Buffer);
  'notAfterMs': (string);
}
