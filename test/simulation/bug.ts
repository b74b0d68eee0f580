/** Bugs that can be planted at the ports of a simulated world, to see that it finds them. */

export const BUGS = [
  /** A heartbeat renews all that the replica thinks the agent has, and not what it names. */
  "renew-all-leases",
  /** A report is acknowledged when it has arrived, and not when it is durable. */
  "ack-before-durable",
  /** An outcome under an old epoch is taken for one under the current. */
  "accept-stale-epoch",
  /** A replica that starts again does not set the timer that its runs are owed. */
  "forget-owed-effect",
  /** A replica that starts again counts its message ids from the beginning. */
  "reuse-message-id",
  /** An agent judges the expiry of offers by its own wall clock. */
  "trust-local-clock",
  /** An agent starts an offer that it has seen before. */
  "double-start",
  /** An agent starts a `once` step that it was offered, without asking whether it is the holder on record. */
  "start-without-consent",
  /** A replica writes to its runs whoever owns their shard meanwhile: it expects whatever the run's last message is. */
  "write-without-fence",
  /** Somebody who cancels a run is answered before anything of it is durable. */
  "answer-cancel-before-durable",
  /** A report out of the inbox is taken whoever signed it. */
  "accept-forged-report",
  /** Of a report out of the inbox the signature is verified, and not that it is over this report. */
  "accept-signature-of-another-lease",
  /** An agent whose connection ends takes itself for free until it is welcomed again. */
  "forget-cordon-on-reconnect",
] as const;

export type Bug = (typeof BUGS)[number];
