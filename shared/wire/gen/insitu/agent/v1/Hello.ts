// Original file: proto/insitu/agent/v1/agent.proto

import type { Version as _insitu_agent_v1_Version, Version__Output as _insitu_agent_v1_Version__Output } from '../../../insitu/agent/v1/Version.ts';
import type { Lease as _insitu_agent_v1_Lease, Lease__Output as _insitu_agent_v1_Lease__Output } from '../../../insitu/agent/v1/Lease.ts';
import type { SitePolicy as _insitu_agent_v1_SitePolicy, SitePolicy__Output as _insitu_agent_v1_SitePolicy__Output } from '../../../insitu/agent/v1/SitePolicy.ts';
import type { Sandbox as _insitu_agent_v1_Sandbox, Sandbox__Output as _insitu_agent_v1_Sandbox__Output } from '../../../insitu/agent/v1/Sandbox.ts';
import type { HeldRoots as _insitu_agent_v1_HeldRoots, HeldRoots__Output as _insitu_agent_v1_HeldRoots__Output } from '../../../insitu/agent/v1/HeldRoots.ts';
import type { Long } from '@grpc/proto-loader';

export interface Hello {
  'version'?: (_insitu_agent_v1_Version | null);
  'slots'?: (number);
  'executors'?: (string)[];
  'datasets'?: (string)[];
  'labels'?: ({[key: string]: string});
  'hostname'?: (string);
  'instanceId'?: (string);
  'held'?: (_insitu_agent_v1_Lease)[];
  'natsUserKey'?: (string);
  'sitePolicy'?: (_insitu_agent_v1_SitePolicy | null);
  'sandbox'?: (_insitu_agent_v1_Sandbox | null);
  'reportPublicKey'?: (Buffer | Uint8Array | string);
  'reportKeyProof'?: (Buffer | Uint8Array | string);
  'roots'?: (_insitu_agent_v1_HeldRoots | null);
  'cordonRevision'?: (number | string | Long);
}

export interface Hello__Output {
  'version': (_insitu_agent_v1_Version__Output | null);
  'slots': (number);
  'executors': (string)[];
  'datasets': (string)[];
  'labels': ({[key: string]: string});
  'hostname': (string);
  'instanceId': (string);
  'held': (_insitu_agent_v1_Lease__Output)[];
  'natsUserKey': (string);
  'sitePolicy': (_insitu_agent_v1_SitePolicy__Output | null);
  'sandbox': (_insitu_agent_v1_Sandbox__Output | null);
  'reportPublicKey': (Buffer);
  'reportKeyProof': (Buffer);
  'roots': (_insitu_agent_v1_HeldRoots__Output | null);
  'cordonRevision': (string);
}
