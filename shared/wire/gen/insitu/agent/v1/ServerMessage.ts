// Original file: proto/insitu/agent/v1/agent.proto

import type { Welcome as _insitu_agent_v1_Welcome, Welcome__Output as _insitu_agent_v1_Welcome__Output } from '../../../insitu/agent/v1/Welcome.ts';
import type { HeartbeatReply as _insitu_agent_v1_HeartbeatReply, HeartbeatReply__Output as _insitu_agent_v1_HeartbeatReply__Output } from '../../../insitu/agent/v1/HeartbeatReply.ts';
import type { Cancel as _insitu_agent_v1_Cancel, Cancel__Output as _insitu_agent_v1_Cancel__Output } from '../../../insitu/agent/v1/Cancel.ts';
import type { Drain as _insitu_agent_v1_Drain, Drain__Output as _insitu_agent_v1_Drain__Output } from '../../../insitu/agent/v1/Drain.ts';
import type { NatsAccess as _insitu_agent_v1_NatsAccess, NatsAccess__Output as _insitu_agent_v1_NatsAccess__Output } from '../../../insitu/agent/v1/NatsAccess.ts';
import type { Roots as _insitu_agent_v1_Roots, Roots__Output as _insitu_agent_v1_Roots__Output } from '../../../insitu/agent/v1/Roots.ts';

export interface ServerMessage {
  'welcome'?: (_insitu_agent_v1_Welcome | null);
  'heartbeatReply'?: (_insitu_agent_v1_HeartbeatReply | null);
  'cancel'?: (_insitu_agent_v1_Cancel | null);
  'drain'?: (_insitu_agent_v1_Drain | null);
  'natsAccess'?: (_insitu_agent_v1_NatsAccess | null);
  'roots'?: (_insitu_agent_v1_Roots | null);
  'message'?: "welcome"|"heartbeatReply"|"cancel"|"drain"|"natsAccess"|"roots";
}

export interface ServerMessage__Output {
  'welcome'?: (_insitu_agent_v1_Welcome__Output | null);
  'heartbeatReply'?: (_insitu_agent_v1_HeartbeatReply__Output | null);
  'cancel'?: (_insitu_agent_v1_Cancel__Output | null);
  'drain'?: (_insitu_agent_v1_Drain__Output | null);
  'natsAccess'?: (_insitu_agent_v1_NatsAccess__Output | null);
  'roots'?: (_insitu_agent_v1_Roots__Output | null);
  'message'?: "welcome"|"heartbeatReply"|"cancel"|"drain"|"natsAccess"|"roots";
}
