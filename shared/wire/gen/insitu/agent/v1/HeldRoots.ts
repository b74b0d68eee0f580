// Original file: proto/insitu/agent/v1/agent.proto

import type { Long } from '@grpc/proto-loader';

export interface HeldRoots {
  'revision'?: (number | string | Long);
  'pins'?: (string)[];
}

export interface HeldRoots__Output {
  'revision': (string);
  'pins': (string)[];
}
