/**
 * Why chunks of logs that the store gives back are not to be shown. Whoever runs the store can change them, make them
 * up, and put those of one attempt in the place of another's; what an agent signed says which ones are its own.
 */
import { LOG_BATCH_PURPOSE, type LogSignature, logBatchAt } from "../../shared/wire/log-signature.ts";
import type { LogChunk } from "./ports.ts";
import type { ReportKeys } from "./report-keys.ts";

/** A chunk out of the store. `signed`: null where something stands in its place. */
export interface StoredChunk extends Omit<LogChunk, "seq" | "signed"> {
  signed: LogSignature | null | undefined;
}

/** What the history of a run says of a grant. */
export interface KnownGrant {
  step: string;
  epoch: number;
  environment: string;
  /** Null: nobody is known to have taken it. */
  agent: string | null;
  startedAtMs: number | null;
}

export interface LogDoubtsOptions {
  keys: Pick<ReportKeys, "hasSigned" | "signsSinceMs">;
  /** As far as the history is known here; without the grants that nobody took. */
  grantsOf(runId: string): KnownGrant[];
  wasGranted(agent: string, at: Pick<StoredChunk, "runId" | "stepId" | "epoch">): Promise<boolean>;
  /** Of an environment, revoked ones among them. */
  agentsOf(environment: string): string[];
}

export class LogDoubts {
  readonly #options: LogDoubtsOptions;

  constructor(options: LogDoubtsOptions) {
    this.#options = options;
  }

  /**
   * For one reading of a run's logs. What it gives resolves with why a chunk is not to be shown, undefined when it is.
   * @throws InsituError retryable: it cannot be told now
   */
  of(runId: string): (chunk: StoredChunk) => Promise<string | undefined> {
    const { keys } = this.#options;
    const grants = new Grants(runId, this.#options);
    return async (chunk) => {
      if (chunk.signed === undefined) return await this.#ofUnsigned(grants.find(chunk));
      if (chunk.signed === null) return "what stands in the place of its signature is none";
      const { agent, keyId } = chunk.signed;
      const batch = logBatchAt(chunk, chunk.signed);
      const signature = Buffer.from(chunk.signed.signature, "base64");
      if (!batch || !(await keys.hasSigned(LOG_BATCH_PURPOSE, agent, batch, { signature, keyId })))
        return `it is not what ${agent} signed`;
      return (await grants.includes(agent, chunk)) ? undefined : `${agent} was not granted that attempt`;
    };
  }

  /** It is one of an agent that does not sign, or did not when the attempt began. */
  async #ofUnsigned(grant: KnownGrant | undefined): Promise<string | undefined> {
    if (grant === undefined) return "it is not signed, and nobody is known to have taken that attempt";
    const { agent, environment, startedAtMs } = grant;
    for (const one of agent === null ? this.#options.agentsOf(environment) : [agent]) {
      const sinceMs = await this.#options.keys.signsSinceMs(one);
      if (sinceMs !== undefined && sinceMs <= (startedAtMs ?? Number.POSITIVE_INFINITY))
        return `it is not signed, and ${one} signs its logs`;
    }
    return undefined;
  }
}

/** Of one run. The history is read once, and again for what it did not have. */
class Grants {
  readonly #runId: string;
  readonly #options: LogDoubtsOptions;
  #known: Map<string, KnownGrant> | undefined;
  readonly #asked = new Set<string>();

  constructor(runId: string, options: LogDoubtsOptions) {
    this.#runId = runId;
    this.#options = options;
  }

  find(at: Pick<StoredChunk, "stepId" | "epoch">): KnownGrant | undefined {
    const known = this.#read().get(keyOf(at.stepId, at.epoch));
    // It may have been taken since.
    return known && known.agent !== null ? known : this.#read(true).get(keyOf(at.stepId, at.epoch));
  }

  /** By environment, as where chunks come in: an offer that the queue gave twice may have run at two agents. */
  async includes(agent: string, { runId, stepId, epoch }: StoredChunk): Promise<boolean> {
    const known = this.#read().get(keyOf(stepId, epoch));
    if (known) return agent.startsWith(`${known.environment}/`);
    const asked = `${agent} ${keyOf(stepId, epoch)}`;
    if (this.#asked.has(asked)) return true;
    const granted = await this.#options.wasGranted(agent, { runId, stepId, epoch });
    if (granted) this.#asked.add(asked);
    return granted;
  }

  #read(again = false): Map<string, KnownGrant> {
    if (this.#known === undefined || again)
      this.#known = new Map(
        this.#options.grantsOf(this.#runId).map((grant) => [keyOf(grant.step, grant.epoch), grant]),
      );
    return this.#known;
  }
}

function keyOf(step: string, epoch: number): string {
  return `${step}/${epoch}`;
}
