// Original file: proto/insitu/agent/v1/agent.proto

import type { Long } from '@grpc/proto-loader';

export interface Cordon {
  'revision'?: (number | string | Long);
  'cordoned'?: (boolean);
  'by'?: (string);
  'reason'?: (string);
  'drainDeadlineMs'?: (number | string | Long);
  'drainOnce'?: (boolean);
}

export interface Cordon__Output {
  'revision': (string);
  'cordoned': (boolean);
  'by': (string);
  'reason': (string);
  'drainDeadlineMs': (string);
  'drainOnce': (boolean);
}
