/** What an agent says of the roots that it trusts, and what it is told of them. Of one session. */
import { X509Certificate } from "node:crypto";
import type { Logger } from "pino";
import type { Roots } from "../../shared/wire/gen/insitu/agent/v1/Roots.ts";
import type { ChangingPki } from "../access/authority.ts";
import type { AgentRegistry } from "../fleet/agent-registry.ts";
import type { Peer } from "./peer-identity.ts";

export interface HeldRoots {
  revision: number;
  pins: string[];
}

export interface RootNewsDeps {
  registry: AgentRegistry;
  pki: Pick<ChangingPki, "roots" | "issuerOf">;
  log: Logger;
}

export class RootNews {
  readonly #deps: RootNewsDeps;
  readonly #peer: Peer;
  readonly #issuer: string | null;
  /** Once for each revision: what the agent does not take now it will not take a moment later. */
  #toldRevision = 0;
  #noting = false;

  constructor(deps: RootNewsDeps, peer: Peer) {
    this.#deps = deps;
    this.#peer = peer;
    this.#issuer = deps.pki.issuerOf(new X509Certificate(peer.certificateDer)) ?? null;
  }

  /** With each hello and heartbeat. @param held null from an agent that knows of none Gives what to tell it. */
  heard(held: HeldRoots | null): Roots | undefined {
    this.#note(held);
    const { roots } = this.#deps.pki;
    if (held === null || roots === undefined) return undefined;
    if (held.revision >= roots.revision || this.#toldRevision === roots.revision) return undefined;
    this.#toldRevision = roots.revision;
    return {
      revision: String(roots.revision),
      caPem: Buffer.from(roots.pem),
      issuerPin: roots.issuerPin,
      signatures: roots.signatures.map(({ signerPem, signature }) => ({
        signerPem: Buffer.from(signerPem),
        signature,
      })),
    };
  }

  /** Does not wait for the store: the next heartbeat says it again. */
  #note(held: HeldRoots | null): void {
    if (this.#noting) return;
    this.#noting = true;
    const { registry, log } = this.#deps;
    registry
      .noteTrust(this.#peer.id, { roots: held === null ? null : [...held.pins].sort(), issuer: this.#issuer })
      .catch((err: unknown) =>
        log.warn({ agentId: this.#peer.id, err }, "roots of an agent are not noted yet"),
      )
      .finally(() => {
        this.#noting = false;
      });
  }
}
