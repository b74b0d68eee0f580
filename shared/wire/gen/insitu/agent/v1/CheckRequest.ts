// Original file: proto/insitu/agent/v1/agent.proto

import type { Version as _insitu_agent_v1_Version, Version__Output as _insitu_agent_v1_Version__Output } from '../../../insitu/agent/v1/Version.ts';

export interface CheckRequest {
  'version'?: (_insitu_agent_v1_Version | null);
}

export interface CheckRequest__Output {
  'version': (_insitu_agent_v1_Version__Output | null);
}
