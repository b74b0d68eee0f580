// Original file: proto/insitu/agent/v1/agent.proto

import type { Hello as _insitu_agent_v1_Hello, Hello__Output as _insitu_agent_v1_Hello__Output } from '../../../insitu/agent/v1/Hello.ts';
import type { Heartbeat as _insitu_agent_v1_Heartbeat, Heartbeat__Output as _insitu_agent_v1_Heartbeat__Output } from '../../../insitu/agent/v1/Heartbeat.ts';
import type { Goodbye as _insitu_agent_v1_Goodbye, Goodbye__Output as _insitu_agent_v1_Goodbye__Output } from '../../../insitu/agent/v1/Goodbye.ts';
import type { RefusedOffer as _insitu_agent_v1_RefusedOffer, RefusedOffer__Output as _insitu_agent_v1_RefusedOffer__Output } from '../../../insitu/agent/v1/RefusedOffer.ts';

export interface AgentMessage {
  'hello'?: (_insitu_agent_v1_Hello | null);
  'heartbeat'?: (_insitu_agent_v1_Heartbeat | null);
  'goodbye'?: (_insitu_agent_v1_Goodbye | null);
  'refusedOffer'?: (_insitu_agent_v1_RefusedOffer | null);
  'message'?: "hello"|"heartbeat"|"goodbye"|"refusedOffer";
}

export interface AgentMessage__Output {
  'hello'?: (_insitu_agent_v1_Hello__Output | null);
  'heartbeat'?: (_insitu_agent_v1_Heartbeat__Output | null);
  'goodbye'?: (_insitu_agent_v1_Goodbye__Output | null);
  'refusedOffer'?: (_insitu_agent_v1_RefusedOffer__Output | null);
  'message'?: "hello"|"heartbeat"|"goodbye"|"refusedOffer";
}
