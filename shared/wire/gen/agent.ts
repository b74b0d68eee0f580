import type * as grpc from '@grpc/grpc-js';
import type { EnumTypeDefinition, MessageTypeDefinition } from '@grpc/proto-loader';

import type { Ack as _insitu_agent_v1_Ack, Ack__Output as _insitu_agent_v1_Ack__Output } from './insitu/agent/v1/Ack.ts';
import type { AgentGatewayClient as _insitu_agent_v1_AgentGatewayClient, AgentGatewayDefinition as _insitu_agent_v1_AgentGatewayDefinition } from './insitu/agent/v1/AgentGateway.ts';
import type { AgentMessage as _insitu_agent_v1_AgentMessage, AgentMessage__Output as _insitu_agent_v1_AgentMessage__Output } from './insitu/agent/v1/AgentMessage.ts';
import type { Cancel as _insitu_agent_v1_Cancel, Cancel__Output as _insitu_agent_v1_Cancel__Output } from './insitu/agent/v1/Cancel.ts';
import type { CheckReply as _insitu_agent_v1_CheckReply, CheckReply__Output as _insitu_agent_v1_CheckReply__Output } from './insitu/agent/v1/CheckReply.ts';
import type { CheckRequest as _insitu_agent_v1_CheckRequest, CheckRequest__Output as _insitu_agent_v1_CheckRequest__Output } from './insitu/agent/v1/CheckRequest.ts';
import type { Cordon as _insitu_agent_v1_Cordon, Cordon__Output as _insitu_agent_v1_Cordon__Output } from './insitu/agent/v1/Cordon.ts';
import type { Drain as _insitu_agent_v1_Drain, Drain__Output as _insitu_agent_v1_Drain__Output } from './insitu/agent/v1/Drain.ts';
import type { EnrolRequest as _insitu_agent_v1_EnrolRequest, EnrolRequest__Output as _insitu_agent_v1_EnrolRequest__Output } from './insitu/agent/v1/EnrolRequest.ts';
import type { EnrolResponse as _insitu_agent_v1_EnrolResponse, EnrolResponse__Output as _insitu_agent_v1_EnrolResponse__Output } from './insitu/agent/v1/EnrolResponse.ts';
import type { Goodbye as _insitu_agent_v1_Goodbye, Goodbye__Output as _insitu_agent_v1_Goodbye__Output } from './insitu/agent/v1/Goodbye.ts';
import type { Heartbeat as _insitu_agent_v1_Heartbeat, Heartbeat__Output as _insitu_agent_v1_Heartbeat__Output } from './insitu/agent/v1/Heartbeat.ts';
import type { HeartbeatReply as _insitu_agent_v1_HeartbeatReply, HeartbeatReply__Output as _insitu_agent_v1_HeartbeatReply__Output } from './insitu/agent/v1/HeartbeatReply.ts';
import type { HeldRoots as _insitu_agent_v1_HeldRoots, HeldRoots__Output as _insitu_agent_v1_HeldRoots__Output } from './insitu/agent/v1/HeldRoots.ts';
import type { Hello as _insitu_agent_v1_Hello, Hello__Output as _insitu_agent_v1_Hello__Output } from './insitu/agent/v1/Hello.ts';
import type { Lease as _insitu_agent_v1_Lease, Lease__Output as _insitu_agent_v1_Lease__Output } from './insitu/agent/v1/Lease.ts';
import type { LedgerCheckpoint as _insitu_agent_v1_LedgerCheckpoint, LedgerCheckpoint__Output as _insitu_agent_v1_LedgerCheckpoint__Output } from './insitu/agent/v1/LedgerCheckpoint.ts';
import type { LogBatch as _insitu_agent_v1_LogBatch, LogBatch__Output as _insitu_agent_v1_LogBatch__Output } from './insitu/agent/v1/LogBatch.ts';
import type { LogChunk as _insitu_agent_v1_LogChunk, LogChunk__Output as _insitu_agent_v1_LogChunk__Output } from './insitu/agent/v1/LogChunk.ts';
import type { LogEntries as _insitu_agent_v1_LogEntries, LogEntries__Output as _insitu_agent_v1_LogEntries__Output } from './insitu/agent/v1/LogEntries.ts';
import type { LogEntry as _insitu_agent_v1_LogEntry, LogEntry__Output as _insitu_agent_v1_LogEntry__Output } from './insitu/agent/v1/LogEntry.ts';
import type { NatsAccess as _insitu_agent_v1_NatsAccess, NatsAccess__Output as _insitu_agent_v1_NatsAccess__Output } from './insitu/agent/v1/NatsAccess.ts';
import type { RecoverRequest as _insitu_agent_v1_RecoverRequest, RecoverRequest__Output as _insitu_agent_v1_RecoverRequest__Output } from './insitu/agent/v1/RecoverRequest.ts';
import type { RefusedOffer as _insitu_agent_v1_RefusedOffer, RefusedOffer__Output as _insitu_agent_v1_RefusedOffer__Output } from './insitu/agent/v1/RefusedOffer.ts';
import type { Rejected as _insitu_agent_v1_Rejected, Rejected__Output as _insitu_agent_v1_Rejected__Output } from './insitu/agent/v1/Rejected.ts';
import type { RememberedLedger as _insitu_agent_v1_RememberedLedger, RememberedLedger__Output as _insitu_agent_v1_RememberedLedger__Output } from './insitu/agent/v1/RememberedLedger.ts';
import type { RenewRequest as _insitu_agent_v1_RenewRequest, RenewRequest__Output as _insitu_agent_v1_RenewRequest__Output } from './insitu/agent/v1/RenewRequest.ts';
import type { RenewResponse as _insitu_agent_v1_RenewResponse, RenewResponse__Output as _insitu_agent_v1_RenewResponse__Output } from './insitu/agent/v1/RenewResponse.ts';
import type { Report as _insitu_agent_v1_Report, Report__Output as _insitu_agent_v1_Report__Output } from './insitu/agent/v1/Report.ts';
import type { ReportBatch as _insitu_agent_v1_ReportBatch, ReportBatch__Output as _insitu_agent_v1_ReportBatch__Output } from './insitu/agent/v1/ReportBatch.ts';
import type { Roots as _insitu_agent_v1_Roots, Roots__Output as _insitu_agent_v1_Roots__Output } from './insitu/agent/v1/Roots.ts';
import type { RootsSignature as _insitu_agent_v1_RootsSignature, RootsSignature__Output as _insitu_agent_v1_RootsSignature__Output } from './insitu/agent/v1/RootsSignature.ts';
import type { Sandbox as _insitu_agent_v1_Sandbox, Sandbox__Output as _insitu_agent_v1_Sandbox__Output } from './insitu/agent/v1/Sandbox.ts';
import type { ServerMessage as _insitu_agent_v1_ServerMessage, ServerMessage__Output as _insitu_agent_v1_ServerMessage__Output } from './insitu/agent/v1/ServerMessage.ts';
import type { SitePolicy as _insitu_agent_v1_SitePolicy, SitePolicy__Output as _insitu_agent_v1_SitePolicy__Output } from './insitu/agent/v1/SitePolicy.ts';
import type { Version as _insitu_agent_v1_Version, Version__Output as _insitu_agent_v1_Version__Output } from './insitu/agent/v1/Version.ts';
import type { Welcome as _insitu_agent_v1_Welcome, Welcome__Output as _insitu_agent_v1_Welcome__Output } from './insitu/agent/v1/Welcome.ts';

type SubtypeConstructor<Constructor extends new (...args: any) => any, Subtype> = {
  new(...args: ConstructorParameters<Constructor>): Subtype;
};

export interface ProtoGrpcType {
  insitu: {
    agent: {
      v1: {
        Ack: MessageTypeDefinition<_insitu_agent_v1_Ack, _insitu_agent_v1_Ack__Output>
        AgentGateway: SubtypeConstructor<typeof grpc.Client, _insitu_agent_v1_AgentGatewayClient> & { service: _insitu_agent_v1_AgentGatewayDefinition }
        AgentMessage: MessageTypeDefinition<_insitu_agent_v1_AgentMessage, _insitu_agent_v1_AgentMessage__Output>
        Cancel: MessageTypeDefinition<_insitu_agent_v1_Cancel, _insitu_agent_v1_Cancel__Output>
        CheckReply: MessageTypeDefinition<_insitu_agent_v1_CheckReply, _insitu_agent_v1_CheckReply__Output>
        CheckRequest: MessageTypeDefinition<_insitu_agent_v1_CheckRequest, _insitu_agent_v1_CheckRequest__Output>
        Cordon: MessageTypeDefinition<_insitu_agent_v1_Cordon, _insitu_agent_v1_Cordon__Output>
        Drain: MessageTypeDefinition<_insitu_agent_v1_Drain, _insitu_agent_v1_Drain__Output>
        EnrolRequest: MessageTypeDefinition<_insitu_agent_v1_EnrolRequest, _insitu_agent_v1_EnrolRequest__Output>
        EnrolResponse: MessageTypeDefinition<_insitu_agent_v1_EnrolResponse, _insitu_agent_v1_EnrolResponse__Output>
        Goodbye: MessageTypeDefinition<_insitu_agent_v1_Goodbye, _insitu_agent_v1_Goodbye__Output>
        Heartbeat: MessageTypeDefinition<_insitu_agent_v1_Heartbeat, _insitu_agent_v1_Heartbeat__Output>
        HeartbeatReply: MessageTypeDefinition<_insitu_agent_v1_HeartbeatReply, _insitu_agent_v1_HeartbeatReply__Output>
        HeldRoots: MessageTypeDefinition<_insitu_agent_v1_HeldRoots, _insitu_agent_v1_HeldRoots__Output>
        Hello: MessageTypeDefinition<_insitu_agent_v1_Hello, _insitu_agent_v1_Hello__Output>
        Lease: MessageTypeDefinition<_insitu_agent_v1_Lease, _insitu_agent_v1_Lease__Output>
        LedgerCheckpoint: MessageTypeDefinition<_insitu_agent_v1_LedgerCheckpoint, _insitu_agent_v1_LedgerCheckpoint__Output>
        LogBatch: MessageTypeDefinition<_insitu_agent_v1_LogBatch, _insitu_agent_v1_LogBatch__Output>
        LogChunk: MessageTypeDefinition<_insitu_agent_v1_LogChunk, _insitu_agent_v1_LogChunk__Output>
        LogEntries: MessageTypeDefinition<_insitu_agent_v1_LogEntries, _insitu_agent_v1_LogEntries__Output>
        LogEntry: MessageTypeDefinition<_insitu_agent_v1_LogEntry, _insitu_agent_v1_LogEntry__Output>
        NatsAccess: MessageTypeDefinition<_insitu_agent_v1_NatsAccess, _insitu_agent_v1_NatsAccess__Output>
        RecoverRequest: MessageTypeDefinition<_insitu_agent_v1_RecoverRequest, _insitu_agent_v1_RecoverRequest__Output>
        RefusedOffer: MessageTypeDefinition<_insitu_agent_v1_RefusedOffer, _insitu_agent_v1_RefusedOffer__Output>
        Rejected: MessageTypeDefinition<_insitu_agent_v1_Rejected, _insitu_agent_v1_Rejected__Output>
        RememberedLedger: MessageTypeDefinition<_insitu_agent_v1_RememberedLedger, _insitu_agent_v1_RememberedLedger__Output>
        RenewRequest: MessageTypeDefinition<_insitu_agent_v1_RenewRequest, _insitu_agent_v1_RenewRequest__Output>
        RenewResponse: MessageTypeDefinition<_insitu_agent_v1_RenewResponse, _insitu_agent_v1_RenewResponse__Output>
        Report: MessageTypeDefinition<_insitu_agent_v1_Report, _insitu_agent_v1_Report__Output>
        ReportBatch: MessageTypeDefinition<_insitu_agent_v1_ReportBatch, _insitu_agent_v1_ReportBatch__Output>
        Roots: MessageTypeDefinition<_insitu_agent_v1_Roots, _insitu_agent_v1_Roots__Output>
        RootsSignature: MessageTypeDefinition<_insitu_agent_v1_RootsSignature, _insitu_agent_v1_RootsSignature__Output>
        Sandbox: MessageTypeDefinition<_insitu_agent_v1_Sandbox, _insitu_agent_v1_Sandbox__Output>
        ServerMessage: MessageTypeDefinition<_insitu_agent_v1_ServerMessage, _insitu_agent_v1_ServerMessage__Output>
        SitePolicy: MessageTypeDefinition<_insitu_agent_v1_SitePolicy, _insitu_agent_v1_SitePolicy__Output>
        Stream: EnumTypeDefinition
        Version: MessageTypeDefinition<_insitu_agent_v1_Version, _insitu_agent_v1_Version__Output>
        Welcome: MessageTypeDefinition<_insitu_agent_v1_Welcome, _insitu_agent_v1_Welcome__Output>
      }
    }
  }
}

