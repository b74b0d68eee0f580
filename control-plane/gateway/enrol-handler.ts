/** The one call that needs no client certificate. */
import type { handleUnaryCall } from "@grpc/grpc-js";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import type { EnrolRequest__Output } from "../../shared/wire/gen/insitu/agent/v1/EnrolRequest.ts";
import type { EnrolResponse } from "../../shared/wire/gen/insitu/agent/v1/EnrolResponse.ts";
import { type EnrolmentDeps, enrol } from "../access/enrolment.ts";
import { agentId } from "../access/spiffe.ts";
import { checkVersion } from "./messages.ts";
import { RateLimit, type RateLimitOptions } from "./rate-limit.ts";
import { rpcStatus } from "./rpc-errors.ts";

export interface EnrolHandlerDeps extends EnrolmentDeps {
  clock: Clock;
  log: Logger;
  offerPublicKeyPem: string;
  rateLimit: RateLimitOptions;
}

/** A bad token costs this many tries more: honest agents behind one address join undisturbed, guessing does not pay. */
const BAD_TOKEN_COST = 5;

export function enrolHandler(deps: EnrolHandlerDeps): handleUnaryCall<EnrolRequest__Output, EnrolResponse> {
  const limit = new RateLimit(deps.rateLimit);

  const answer = async (request: EnrolRequest__Output, address: string): Promise<EnrolResponse> => {
    if (!limit.take(address, deps.clock.monotonicMs())) {
      throw new InsituError(
        "limit.exceeded",
        "too many agents try to join from this address: wait a minute",
        {
          retryable: true,
        },
      );
    }
    checkVersion(request.version);
    const enrolled = await enrol(deps, {
      secret: request.token,
      agentName: request.agentName,
      csrDer: request.csrDer,
      address,
    });
    deps.log.info({ agentId: agentId(enrolled.agent), address }, "agent enrolled");
    return {
      environment: enrolled.agent.environment,
      trustDomain: deps.pki.trustDomain,
      certificatePem: Buffer.from(enrolled.certificatePem),
      caPem: Buffer.from(deps.pki.caPem),
      notAfterMs: String(enrolled.notAfterMs),
      offerPublicKeyPem: Buffer.from(deps.offerPublicKeyPem),
    };
  };

  return (call, callback) => {
    const address = call.getPeer();
    answer(call.request, address).then(
      (response) => callback(null, response),
      (thrown: unknown) => {
        const err = InsituError.from(thrown);
        if (err.code === "token.invalid") limit.punish(address, BAD_TOKEN_COST);
        const facts = {
          address,
          agentName: call.request.agentName.slice(0, 80),
          code: err.code,
          ...err.details,
        };
        if (err.code === "internal") deps.log.error({ ...facts, err }, "enrolment failed");
        else if (err.code === "approval.waiting") deps.log.debug(facts, "agent waits for approval");
        else deps.log.warn({ ...facts, reason: err.message }, "enrolment refused");
        callback(rpcStatus(err));
      },
    );
  };
}
