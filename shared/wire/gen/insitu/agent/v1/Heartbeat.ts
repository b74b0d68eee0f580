// Original file: proto/insitu/agent/v1/agent.proto

import type { Lease as _insitu_agent_v1_Lease, Lease__Output as _insitu_agent_v1_Lease__Output } from '../../../insitu/agent/v1/Lease.ts';
import type { SitePolicy as _insitu_agent_v1_SitePolicy, SitePolicy__Output as _insitu_agent_v1_SitePolicy__Output } from '../../../insitu/agent/v1/SitePolicy.ts';
import type { Long } from '@grpc/proto-loader';

export interface Heartbeat {
  'seq'?: (number | string | Long);
  'sentAtMs'?: (number | string | Long);
  'held'?: (_insitu_agent_v1_Lease)[];
  'freeSlots'?: (number);
  'spoolBytes'?: (number | string | Long);
  'droppedLogBytes'?: (number | string | Long);
  'notTakingWork'?: (string);
  'sitePolicy'?: (_insitu_agent_v1_SitePolicy | null);
  'refusedOffers'?: (number | string | Long);
}

export interface Heartbeat__Output {
  'seq': (string);
  'sentAtMs': (string);
  'held': (_insitu_agent_v1_Lease__Output)[];
  'freeSlots': (number);
  'spoolBytes': (string);
  'droppedLogBytes': (string);
  'notTakingWork': (string);
  'sitePolicy': (_insitu_agent_v1_SitePolicy__Output | null);
  'refusedOffers': (string);
}
