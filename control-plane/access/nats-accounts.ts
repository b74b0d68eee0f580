/** What a replica needs of the accounts on a NATS, whoever made them. */
import type { AgentUser, NatsCredentials } from "./nats-operator.ts";

export interface NatsAccounts {
  /** Public key of the account that holds the streams. */
  readonly controlPlane: string;
  /** Names the key that signs agents now. */
  readonly accountGeneration: number;
  /** Also the name of the environment's durable consumer. @throws InsituError `unavailable` when it has none */
  accountOf(environment: string): string;
  agentJwt(user: AgentUser): string;
  /** With all rights in the account of the streams. */
  controlPlaneUser(): NatsCredentials;
}
