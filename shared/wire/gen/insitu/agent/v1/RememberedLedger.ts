// Original file: proto/insitu/agent/v1/agent.proto

import type { Long } from '@grpc/proto-loader';

export interface RememberedLedger {
  'size'?: (number | string | Long);
  'trouble'?: (string);
}

export interface RememberedLedger__Output {
  'size': (string);
  'trouble': (string);
}
