// Original file: proto/insitu/agent/v1/agent.proto

import type * as grpc from '@grpc/grpc-js'
import type { MethodDefinition } from '@grpc/proto-loader'
import type { Ack as _insitu_agent_v1_Ack, Ack__Output as _insitu_agent_v1_Ack__Output } from '../../../insitu/agent/v1/Ack.ts';
import type { AgentMessage as _insitu_agent_v1_AgentMessage, AgentMessage__Output as _insitu_agent_v1_AgentMessage__Output } from '../../../insitu/agent/v1/AgentMessage.ts';
import type { CheckReply as _insitu_agent_v1_CheckReply, CheckReply__Output as _insitu_agent_v1_CheckReply__Output } from '../../../insitu/agent/v1/CheckReply.ts';
import type { CheckRequest as _insitu_agent_v1_CheckRequest, CheckRequest__Output as _insitu_agent_v1_CheckRequest__Output } from '../../../insitu/agent/v1/CheckRequest.ts';
import type { EnrolRequest as _insitu_agent_v1_EnrolRequest, EnrolRequest__Output as _insitu_agent_v1_EnrolRequest__Output } from '../../../insitu/agent/v1/EnrolRequest.ts';
import type { EnrolResponse as _insitu_agent_v1_EnrolResponse, EnrolResponse__Output as _insitu_agent_v1_EnrolResponse__Output } from '../../../insitu/agent/v1/EnrolResponse.ts';
import type { LogBatch as _insitu_agent_v1_LogBatch, LogBatch__Output as _insitu_agent_v1_LogBatch__Output } from '../../../insitu/agent/v1/LogBatch.ts';
import type { RecoverRequest as _insitu_agent_v1_RecoverRequest, RecoverRequest__Output as _insitu_agent_v1_RecoverRequest__Output } from '../../../insitu/agent/v1/RecoverRequest.ts';
import type { RenewRequest as _insitu_agent_v1_RenewRequest, RenewRequest__Output as _insitu_agent_v1_RenewRequest__Output } from '../../../insitu/agent/v1/RenewRequest.ts';
import type { RenewResponse as _insitu_agent_v1_RenewResponse, RenewResponse__Output as _insitu_agent_v1_RenewResponse__Output } from '../../../insitu/agent/v1/RenewResponse.ts';
import type { ReportBatch as _insitu_agent_v1_ReportBatch, ReportBatch__Output as _insitu_agent_v1_ReportBatch__Output } from '../../../insitu/agent/v1/ReportBatch.ts';
import type { ServerMessage as _insitu_agent_v1_ServerMessage, ServerMessage__Output as _insitu_agent_v1_ServerMessage__Output } from '../../../insitu/agent/v1/ServerMessage.ts';

export interface AgentGatewayClient extends grpc.Client {
  Check(argument: _insitu_agent_v1_CheckRequest, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_insitu_agent_v1_CheckReply__Output>): grpc.ClientUnaryCall;
  Check(argument: _insitu_agent_v1_CheckRequest, metadata: grpc.Metadata, callback: grpc.requestCallback<_insitu_agent_v1_CheckReply__Output>): grpc.ClientUnaryCall;
  Check(argument: _insitu_agent_v1_CheckRequest, options: grpc.CallOptions, callback: grpc.requestCallback<_insitu_agent_v1_CheckReply__Output>): grpc.ClientUnaryCall;
  Check(argument: _insitu_agent_v1_CheckRequest, callback: grpc.requestCallback<_insitu_agent_v1_CheckReply__Output>): grpc.ClientUnaryCall;
  check(argument: _insitu_agent_v1_CheckRequest, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_insitu_agent_v1_CheckReply__Output>): grpc.ClientUnaryCall;
  check(argument: _insitu_agent_v1_CheckRequest, metadata: grpc.Metadata, callback: grpc.requestCallback<_insitu_agent_v1_CheckReply__Output>): grpc.ClientUnaryCall;
  check(argument: _insitu_agent_v1_CheckRequest, options: grpc.CallOptions, callback: grpc.requestCallback<_insitu_agent_v1_CheckReply__Output>): grpc.ClientUnaryCall;
  check(argument: _insitu_agent_v1_CheckRequest, callback: grpc.requestCallback<_insitu_agent_v1_CheckReply__Output>): grpc.ClientUnaryCall;
  
  Enrol(argument: _insitu_agent_v1_EnrolRequest, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_insitu_agent_v1_EnrolResponse__Output>): grpc.ClientUnaryCall;
  Enrol(argument: _insitu_agent_v1_EnrolRequest, metadata: grpc.Metadata, callback: grpc.requestCallback<_insitu_agent_v1_EnrolResponse__Output>): grpc.ClientUnaryCall;
  Enrol(argument: _insitu_agent_v1_EnrolRequest, options: grpc.CallOptions, callback: grpc.requestCallback<_insitu_agent_v1_EnrolResponse__Output>): grpc.ClientUnaryCall;
  Enrol(argument: _insitu_agent_v1_EnrolRequest, callback: grpc.requestCallback<_insitu_agent_v1_EnrolResponse__Output>): grpc.ClientUnaryCall;
  enrol(argument: _insitu_agent_v1_EnrolRequest, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_insitu_agent_v1_EnrolResponse__Output>): grpc.ClientUnaryCall;
  enrol(argument: _insitu_agent_v1_EnrolRequest, metadata: grpc.Metadata, callback: grpc.requestCallback<_insitu_agent_v1_EnrolResponse__Output>): grpc.ClientUnaryCall;
  enrol(argument: _insitu_agent_v1_EnrolRequest, options: grpc.CallOptions, callback: grpc.requestCallback<_insitu_agent_v1_EnrolResponse__Output>): grpc.ClientUnaryCall;
  enrol(argument: _insitu_agent_v1_EnrolRequest, callback: grpc.requestCallback<_insitu_agent_v1_EnrolResponse__Output>): grpc.ClientUnaryCall;
  
  Logs(metadata: grpc.Metadata, options?: grpc.CallOptions): grpc.ClientDuplexStream<_insitu_agent_v1_LogBatch, _insitu_agent_v1_Ack__Output>;
  Logs(options?: grpc.CallOptions): grpc.ClientDuplexStream<_insitu_agent_v1_LogBatch, _insitu_agent_v1_Ack__Output>;
  logs(metadata: grpc.Metadata, options?: grpc.CallOptions): grpc.ClientDuplexStream<_insitu_agent_v1_LogBatch, _insitu_agent_v1_Ack__Output>;
  logs(options?: grpc.CallOptions): grpc.ClientDuplexStream<_insitu_agent_v1_LogBatch, _insitu_agent_v1_Ack__Output>;
  
  Recover(argument: _insitu_agent_v1_RecoverRequest, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_insitu_agent_v1_RenewResponse__Output>): grpc.ClientUnaryCall;
  Recover(argument: _insitu_agent_v1_RecoverRequest, metadata: grpc.Metadata, callback: grpc.requestCallback<_insitu_agent_v1_RenewResponse__Output>): grpc.ClientUnaryCall;
  Recover(argument: _insitu_agent_v1_RecoverRequest, options: grpc.CallOptions, callback: grpc.requestCallback<_insitu_agent_v1_RenewResponse__Output>): grpc.ClientUnaryCall;
  Recover(argument: _insitu_agent_v1_RecoverRequest, callback: grpc.requestCallback<_insitu_agent_v1_RenewResponse__Output>): grpc.ClientUnaryCall;
  recover(argument: _insitu_agent_v1_RecoverRequest, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_insitu_agent_v1_RenewResponse__Output>): grpc.ClientUnaryCall;
  recover(argument: _insitu_agent_v1_RecoverRequest, metadata: grpc.Metadata, callback: grpc.requestCallback<_insitu_agent_v1_RenewResponse__Output>): grpc.ClientUnaryCall;
  recover(argument: _insitu_agent_v1_RecoverRequest, options: grpc.CallOptions, callback: grpc.requestCallback<_insitu_agent_v1_RenewResponse__Output>): grpc.ClientUnaryCall;
  recover(argument: _insitu_agent_v1_RecoverRequest, callback: grpc.requestCallback<_insitu_agent_v1_RenewResponse__Output>): grpc.ClientUnaryCall;
  
  Renew(argument: _insitu_agent_v1_RenewRequest, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_insitu_agent_v1_RenewResponse__Output>): grpc.ClientUnaryCall;
  Renew(argument: _insitu_agent_v1_RenewRequest, metadata: grpc.Metadata, callback: grpc.requestCallback<_insitu_agent_v1_RenewResponse__Output>): grpc.ClientUnaryCall;
  Renew(argument: _insitu_agent_v1_RenewRequest, options: grpc.CallOptions, callback: grpc.requestCallback<_insitu_agent_v1_RenewResponse__Output>): grpc.ClientUnaryCall;
  Renew(argument: _insitu_agent_v1_RenewRequest, callback: grpc.requestCallback<_insitu_agent_v1_RenewResponse__Output>): grpc.ClientUnaryCall;
  renew(argument: _insitu_agent_v1_RenewRequest, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_insitu_agent_v1_RenewResponse__Output>): grpc.ClientUnaryCall;
  renew(argument: _insitu_agent_v1_RenewRequest, metadata: grpc.Metadata, callback: grpc.requestCallback<_insitu_agent_v1_RenewResponse__Output>): grpc.ClientUnaryCall;
  renew(argument: _insitu_agent_v1_RenewRequest, options: grpc.CallOptions, callback: grpc.requestCallback<_insitu_agent_v1_RenewResponse__Output>): grpc.ClientUnaryCall;
  renew(argument: _insitu_agent_v1_RenewRequest, callback: grpc.requestCallback<_insitu_agent_v1_RenewResponse__Output>): grpc.ClientUnaryCall;
  
  Report(metadata: grpc.Metadata, options?: grpc.CallOptions): grpc.ClientDuplexStream<_insitu_agent_v1_ReportBatch, _insitu_agent_v1_Ack__Output>;
  Report(options?: grpc.CallOptions): grpc.ClientDuplexStream<_insitu_agent_v1_ReportBatch, _insitu_agent_v1_Ack__Output>;
  report(metadata: grpc.Metadata, options?: grpc.CallOptions): grpc.ClientDuplexStream<_insitu_agent_v1_ReportBatch, _insitu_agent_v1_Ack__Output>;
  report(options?: grpc.CallOptions): grpc.ClientDuplexStream<_insitu_agent_v1_ReportBatch, _insitu_agent_v1_Ack__Output>;
  
  Session(metadata: grpc.Metadata, options?: grpc.CallOptions): grpc.ClientDuplexStream<_insitu_agent_v1_AgentMessage, _insitu_agent_v1_ServerMessage__Output>;
  Session(options?: grpc.CallOptions): grpc.ClientDuplexStream<_insitu_agent_v1_AgentMessage, _insitu_agent_v1_ServerMessage__Output>;
  session(metadata: grpc.Metadata, options?: grpc.CallOptions): grpc.ClientDuplexStream<_insitu_agent_v1_AgentMessage, _insitu_agent_v1_ServerMessage__Output>;
  session(options?: grpc.CallOptions): grpc.ClientDuplexStream<_insitu_agent_v1_AgentMessage, _insitu_agent_v1_ServerMessage__Output>;
  
}

export interface AgentGatewayHandlers extends grpc.UntypedServiceImplementation {
  Check: grpc.handleUnaryCall<_insitu_agent_v1_CheckRequest__Output, _insitu_agent_v1_CheckReply>;
  
  Enrol: grpc.handleUnaryCall<_insitu_agent_v1_EnrolRequest__Output, _insitu_agent_v1_EnrolResponse>;
  
  Logs: grpc.handleBidiStreamingCall<_insitu_agent_v1_LogBatch__Output, _insitu_agent_v1_Ack>;
  
  Recover: grpc.handleUnaryCall<_insitu_agent_v1_RecoverRequest__Output, _insitu_agent_v1_RenewResponse>;
  
  Renew: grpc.handleUnaryCall<_insitu_agent_v1_RenewRequest__Output, _insitu_agent_v1_RenewResponse>;
  
  Report: grpc.handleBidiStreamingCall<_insitu_agent_v1_ReportBatch__Output, _insitu_agent_v1_Ack>;
  
  Session: grpc.handleBidiStreamingCall<_insitu_agent_v1_AgentMessage__Output, _insitu_agent_v1_ServerMessage>;
  
}

export interface AgentGatewayDefinition extends grpc.ServiceDefinition {
  Check: MethodDefinition<_insitu_agent_v1_CheckRequest, _insitu_agent_v1_CheckReply, _insitu_agent_v1_CheckRequest__Output, _insitu_agent_v1_CheckReply__Output>
  Enrol: MethodDefinition<_insitu_agent_v1_EnrolRequest, _insitu_agent_v1_EnrolResponse, _insitu_agent_v1_EnrolRequest__Output, _insitu_agent_v1_EnrolResponse__Output>
  Logs: MethodDefinition<_insitu_agent_v1_LogBatch, _insitu_agent_v1_Ack, _insitu_agent_v1_LogBatch__Output, _insitu_agent_v1_Ack__Output>
  Recover: MethodDefinition<_insitu_agent_v1_RecoverRequest, _insitu_agent_v1_RenewResponse, _insitu_agent_v1_RecoverRequest__Output, _insitu_agent_v1_RenewResponse__Output>
  Renew: MethodDefinition<_insitu_agent_v1_RenewRequest, _insitu_agent_v1_RenewResponse, _insitu_agent_v1_RenewRequest__Output, _insitu_agent_v1_RenewResponse__Output>
  Report: MethodDefinition<_insitu_agent_v1_ReportBatch, _insitu_agent_v1_Ack, _insitu_agent_v1_ReportBatch__Output, _insitu_agent_v1_Ack__Output>
  Session: MethodDefinition<_insitu_agent_v1_AgentMessage, _insitu_agent_v1_ServerMessage, _insitu_agent_v1_AgentMessage__Output, _insitu_agent_v1_ServerMessage__Output>
}
