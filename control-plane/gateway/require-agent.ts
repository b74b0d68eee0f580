/** Which methods need an agent: all but Enrol and Recover. Deny by default. */
import {
  type Metadata,
  ServerInterceptingCall,
  type ServerInterceptingCallInterface,
  type ServerInterceptor,
} from "@grpc/grpc-js";
import { InsituError } from "../../shared/errors.ts";
import { agentGatewayService } from "../../shared/wire/grpc.ts";
import { type AdmissionDeps, admitAgent } from "./admission.ts";
import type { Peer } from "./peer-identity.ts";
import { rpcStatus } from "./rpc-errors.ts";

const OPEN_METHODS: ReadonlySet<string> = new Set([
  agentGatewayService.Enrol.path,
  agentGatewayService.Recover.path,
]);
const PEER = Symbol("the agent that the interceptor let in");

export interface RequireAgentDeps extends AdmissionDeps {
  /** Says why no new call is taken now, or undefined. */
  closing(): InsituError | undefined;
}

export function requireAgent(deps: RequireAgentDeps): ServerInterceptor {
  return (method, call) => {
    if (OPEN_METHODS.has(method.path)) return new ServerInterceptingCall(call);
    return new AgentCall(call, async () => {
      const closing = deps.closing();
      if (closing !== undefined) throw closing;
      // Empty unless TLS verified the certificate against our authority.
      const certificate = call.getAuthContext().sslPeerCertificate?.raw;
      return await admitAgent(deps, { method: method.path, address: call.getPeer(), certificate });
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
