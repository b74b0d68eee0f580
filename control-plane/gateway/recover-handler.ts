/** A new certificate for an agent whose old one has expired: it proves its key, and a person approves. */
import type { handleUnaryCall } from "@grpc/grpc-js";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import { Name } from "../../shared/model/names.ts";
import type { Clock } from "../../shared/system.ts";
import type { RecoverRequest__Output } from "../../shared/wire/gen/insitu/agent/v1/RecoverRequest.ts";
import type { RenewResponse } from "../../shared/wire/gen/insitu/agent/v1/RenewResponse.ts";
import type { ValidFor } from "../access/enrolment.ts";
import type { JoinRequestService } from "../access/join-requests.ts";
import type { Pki } from "../access/pki.ts";
import { agentId } from "../access/spiffe.ts";
import { keysOf } from "../fleet/agent-record.ts";
import type { AgentRegistry } from "../fleet/agent-registry.ts";
import { checkVersion } from "./messages.ts";
import { RateLimit, type RateLimitOptions } from "./rate-limit.ts";
import { rpcStatus } from "./rpc-errors.ts";

export interface RecoverHandlerDeps {
  registry: AgentRegistry;
  pki: Pki;
  joinRequests: JoinRequestService;
  clock: Clock;
  log: Logger;
  validForMs: ValidFor | undefined;
  rateLimit: RateLimitOptions;
}

/** How long a request is shown without the agent asking again. */
const REQUEST_MS = 24 * 3_600_000;

export function recoverHandler(
  deps: RecoverHandlerDeps,
): handleUnaryCall<RecoverRequest__Output, RenewResponse> {
  const { registry, pki, joinRequests, clock, log, validForMs } = deps;
  const limit = new RateLimit(deps.rateLimit);

  const answer = async (request: RecoverRequest__Output, address: string): Promise<RenewResponse> => {
    if (!limit.take(address, clock.monotonicMs())) {
      throw new InsituError("limit.exceeded", "too many requests come from this address: wait a minute", {
        retryable: true,
      });
    }
    checkVersion(request.version);
    const [environment, name] = [Name.safeParse(request.environment), Name.safeParse(request.agentName)];
    // The request is signed with the key that it names: whoever sent it made it, or saw it and has no use of the answer.
    const key = await pki.readRequest(request.csrDer);
    // The same words for what is not there and for what has another key: nothing is told to who does not hold it.
    const unknown = new InsituError("auth.denied", "no agent of this name is enrolled with this key");
    if (!environment.success || !name.success) throw unknown;
    const agent = { environment: environment.data, name: name.data };
    if (!keysOf(await registry.find(agentId(agent))).includes(key.spkiSha256)) throw unknown;
    const { spkiSha256 } = key;
    const expiresAtMs = clock.wallMs() + REQUEST_MS;
    await joinRequests.demand({ ...agent, spkiSha256, address, expiresAtMs, recovers: true });
    // Before the certificate: an approval lets the agent back once.
    await joinRequests.consume({ ...agent, spkiSha256 });
    const issued = await pki.issueAgentCertificate(agent, key, validForMs?.(agent.environment));
    await registry.recover(agent, issued);
    log.info({ agentId: agentId(agent), notAfterMs: issued.notAfterMs }, "agent came back with its old key");
    return { certificatePem: Buffer.from(issued.certificatePem), notAfterMs: String(issued.notAfterMs) };
  };

  return (call, callback) => {
    const address = call.getPeer();
    answer(call.request, address).then(
      (response) => callback(null, response),
      (thrown: unknown) => {
        const err = InsituError.from(thrown);
        const facts = { address, agentName: call.request.agentName.slice(0, 80), code: err.code };
        if (err.code === "internal") log.error({ ...facts, err }, "recovery failed");
        else if (err.code === "approval.waiting") log.debug(facts, "agent waits for approval to come back");
        else log.warn({ ...facts, reason: err.message }, "recovery refused");
        callback(rpcStatus(err));
      },
    );
  };
}
