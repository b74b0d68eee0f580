/** A new certificate for an agent that comes with one that is still good. */
import type { handleUnaryCall } from "@grpc/grpc-js";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import type { RenewRequest__Output } from "../../shared/wire/gen/insitu/agent/v1/RenewRequest.ts";
import type { RenewResponse } from "../../shared/wire/gen/insitu/agent/v1/RenewResponse.ts";
import type { ValidFor } from "../access/enrolment.ts";
import type { Pki } from "../access/pki.ts";
import type { AgentRegistry } from "../fleet/agent-registry.ts";
import { checkVersion } from "./messages.ts";
import type { Peer } from "./peer-identity.ts";
import { RateLimit, type RateLimitOptions } from "./rate-limit.ts";
import { peerOf } from "./require-agent.ts";
import { rpcStatus } from "./rpc-errors.ts";

export interface RenewHandlerDeps {
  registry: AgentRegistry;
  pki: Pki;
  clock: Clock;
  log: Logger;
  validForMs: ValidFor | undefined;
  rateLimit: RateLimitOptions;
}

export function renewHandler(deps: RenewHandlerDeps): handleUnaryCall<RenewRequest__Output, RenewResponse> {
  const { registry, pki, clock, log, validForMs } = deps;
  const limit = new RateLimit(deps.rateLimit);

  const answer = async (request: RenewRequest__Output, peer: Peer): Promise<RenewResponse> => {
    if (!limit.take(peer.id, clock.monotonicMs())) {
      throw new InsituError("limit.exceeded", "the agent asks for too many certificates: wait some minutes", {
        retryable: true,
      });
    }
    checkVersion(request.version);
    const { environment, name } = peer;
    const key = await pki.readRequest(request.csrDer);
    const issued = await pki.issueAgentCertificate({ environment, name }, key, validForMs?.(environment));
    await registry.renew({ environment, name }, peer.spkiSha256, issued);
    log.info({ agentId: peer.id, notAfterMs: issued.notAfterMs }, "agent's certificate renewed");
    return {
      certificatePem: Buffer.from(issued.certificatePem),
      notAfterMs: String(issued.notAfterMs),
    };
  };

  return (call, callback) => {
    const peer = peerOf(call);
    answer(call.request, peer).then(
      (response) => callback(null, response),
      (thrown: unknown) => {
        const err = InsituError.from(thrown);
        if (err.code === "internal") log.error({ agentId: peer.id, err }, "renewal failed");
        else log.warn({ agentId: peer.id, code: err.code, reason: err.message }, "renewal refused");
        callback(rpcStatus(err));
      },
    );
  };
}
