// Original file: proto/insitu/agent/v1/agent.proto

import type { Lease as _insitu_agent_v1_Lease, Lease__Output as _insitu_agent_v1_Lease__Output } from '../../../insitu/agent/v1/Lease.ts';
import type { SitePolicy as _insitu_agent_v1_SitePolicy, SitePolicy__Output as _insitu_agent_v1_SitePolicy__Output } from '../../../insitu/agent/v1/SitePolicy.ts';
import type { HeldRoots as _insitu_agent_v1_HeldRoots, HeldRoots__Output as _insitu_agent_v1_HeldRoots__Output } from '../../../insitu/agent/v1/HeldRoots.ts';
import type { RememberedLedger as _insitu_agent_v1_RememberedLedger, RememberedLedger__Output as _insitu_agent_v1_RememberedLedger__Output } from '../../../insitu/agent/v1/RememberedLedger.ts';
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
  'roots'?: (_insitu_agent_v1_HeldRoots | null);
  'ledger'?: (_insitu_agent_v1_RememberedLedger | null);
  'cordonRevision'?: (number | string | Long);
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
  'roots': (_insitu_agent_v1_HeldRoots__Output | null);
  'ledger': (_insitu_agent_v1_RememberedLedger__Output | null);
  'cordonRevision': (string);
}
