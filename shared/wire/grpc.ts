/** The service of `proto/insitu/agent/v1/agent.proto`, for both sides. Types: `gen/insitu/agent/v1/*`. */
import { loadPackageDefinition } from "@grpc/grpc-js";
import { fromJSON } from "@grpc/proto-loader";
import type { ProtoGrpcType } from "./gen/agent.ts";
import { DESCRIPTOR } from "./gen/descriptor.ts";

// Must say the same as the flags in scripts/generate-wire.mjs; nothing else compares them.
const packageDefinition = fromJSON(DESCRIPTOR as Parameters<typeof fromJSON>[0], {
  longs: String,
  enums: String,
  defaults: true,
  oneofs: true,
});

const { AgentGateway } = (loadPackageDefinition(packageDefinition) as unknown as ProtoGrpcType).insitu.agent
  .v1;

/** `new AgentGatewayClient(address, credentials, options)`. 64-bit numbers are decimal strings, bytes are Buffers. */
export const AgentGatewayClient = AgentGateway;
export const agentGatewayService = AgentGateway.service;
/** Metadata key of a failed call: the `ErrorCode` of shared/errors.ts. */
export const ERROR_CODE_METADATA = "insitu-code";
