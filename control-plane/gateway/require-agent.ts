/** The one place that decides who may call what. Deny by default: only Enrol and Recover are open. */
import { X509Certificate } from "node:crypto";
import {
  type Metadata,
  ServerInterceptingCall,
  type ServerInterceptingCallInterface,
  type ServerInterceptor,
} from "@grpc/grpc-js";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import { agentGatewayService } from "../../shared/wire/grpc.ts";
import type { ChangingPki } from "../access/authority.ts";
import { type AgentRecord, keysOf } from "../fleet/agent-record.ts";
import type { AgentRegistry } from "../fleet/agent-registry.ts";
import { inspectPeer, type Peer } from "./peer-identity.ts";
import { rpcStatus } from "./rpc-errors.ts";

const OPEN_METHODS: ReadonlySet<string> = new Set([
  agentGatewayService.Enrol.path,
  agentGatewayService.Recover.path,
]);
const PEER = Symbol("the agent that the interceptor let in");

export interface RequireAgentDeps {
  registry: AgentRegistry;
  clock: Clock;
  log: Logger;
  pki: Pick<ChangingPki, "trustDomain" | "issuerOf">;
  /** Says why no new call is taken now, or undefined. */
  closing(): InsituError | undefined;
}

export function requireAgent(deps: RequireAgentDeps): ServerInterceptor {
  return (method, call) => {
    if (OPEN_METHODS.has(method.path)) return new ServerInterceptingCall(call);
    return new AgentCall(call, async () => {
      const closing = deps.closing();
      if (closing !== undefined) throw closing;
      return await admit(deps, call, method.path);
    });
  };
}

/** The agent whose call this is. Throws when the call did not come through the interceptor. */
export function peerOf(call: { getAuthContext(): object }): Peer {
  const peer = (call.getAuthContext() as { [PEER]?: Peer })[PEER];
  if (peer === undefined)
    throw new InsituError("auth.missing", "the call was not let in by a client certificate");
  return peer;
}

type Fault = "unknown" | "revoked" | "replaced";

function faultOf(record: AgentRecord | undefined, peer: Peer): Fault | undefined {
  if (record === undefined) return "unknown";
  if (record.removedAtMs !== null) return "revoked";
  return keysOf(record).includes(peer.spkiSha256) ? undefined : "replaced";
}

/** Without who revoked it and why: that is for people of the centre. */
export function notAdmitted(id: string, fault: Fault): InsituError {
  const said = {
    unknown: `the agent ${id} is not enrolled here: join with a new token`,
    revoked: `the agent ${id} was revoked: if that was a mistake, remove the directory "identity" from its state directory and join with a new token`,
    replaced: `the agent ${id} has another key by now: this one opens nothing any more`,
  };
  return new InsituError("auth.denied", said[fault]);
}

async function admit(
  deps: RequireAgentDeps,
  call: ServerInterceptingCallInterface,
  method: string,
): Promise<Peer> {
  const address = call.getPeer();
  // Empty unless TLS verified the certificate against our authority.
  const certificate = call.getAuthContext().sslPeerCertificate?.raw;
  const { pki, clock } = deps;
  const verdict = inspectPeer(certificate, { trustDomain: pki.trustDomain, nowMs: clock.wallMs() });
  // TLS knows roots alone, and takes up sessions of before: what an issuer that was retired has signed is refused here.
  const isIssued = verdict.ok && pki.issuerOf(new X509Certificate(verdict.peer.certificateDer)) !== undefined;
  if (!verdict.ok || !isIssued) {
    const fault = verdict.ok ? "issuer" : verdict.fault;
    deps.log.warn({ method, address, fault }, "call without an agent's certificate refused");
    throw new InsituError(
      "auth.missing",
      "this call needs the client certificate that the agent got when it joined; none came, or it is expired, of another authority or not an agent's: join again with a new token",
    );
  }
  const { peer } = verdict;
  const { registry } = deps;
  const known = faultOf(await registry.find(peer.id), peer);
  // What is known here may be from before the agent enrolled anew at another replica.
  const fault = known === undefined ? undefined : faultOf(await registry.stored(peer.id), peer);
  if (fault !== undefined) {
    deps.log.warn(
      { method, address, agentId: peer.id, fault },
      "call of an agent that is not enrolled refused",
    );
    throw notAdmitted(peer.id, fault);
  }
  return peer;
}

/** Holds a call back until its agent is known, and carries the agent to the handler. */
class AgentCall extends ServerInterceptingCall {
  #peer: Peer | undefined;

  constructor(call: ServerInterceptingCallInterface, identify: () => Promise<Peer>) {
    super(call, {
      start: (next) =>
        next({
          onReceiveMetadata: (metadata, proceed) => {
            void this.#letIn(call, identify, () => proceed(metadata));
          },
        }),
    });
  }

  override getAuthContext(): ReturnType<ServerInterceptingCall["getAuthContext"]> {
    const context = super.getAuthContext();
    return this.#peer === undefined ? context : Object.assign(context, { [PEER]: this.#peer });
  }

  async #letIn(
    call: ServerInterceptingCallInterface,
    identify: () => Promise<Peer>,
    proceed: (metadata?: Metadata) => void,
  ): Promise<void> {
    try {
      this.#peer = await identify();
    } catch (err) {
      call.sendStatus(rpcStatus(err));
      return;
    }
    proceed();
  }
}
