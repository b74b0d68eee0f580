// Original file: proto/insitu/agent/v1/agent.proto

import type { Long } from '@grpc/proto-loader';

export interface EnrolResponse {
  'environment'?: (string);
  'trustDomain'?: (string);
  'certificatePem'?: (Buffer | Uint8Array | string);
  'caPem'?: (Buffer | Uint8Array | string);
  'notAfterMs'?: (number | string | Long);
  'offerPublicKeyPem'?: (Buffer | Uint8Array | string);
}

export interface EnrolResponse__Output {
  'environment': (string);
  'trustDomain': (string);
  'certificatePem': (Buffer);
  'caPem': (Buffer);
  'notAfterMs': (string);
  'offerPublicKeyPem': (Buffer);
}
