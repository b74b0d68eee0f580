// Original file: proto/insitu/agent/v1/agent.proto

import type { Long } from '@grpc/proto-loader';

export interface Rejected {
  'seq'?: (number | string | Long);
  'code'?: (string);
  'message'?: (string);
}

export interface Rejected__Output {
  'seq': (string);
  'code': (string);
  'message': (string);
}
